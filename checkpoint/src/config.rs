//! [`CheckpointsConfig`]: settings under the names that other savers have for them.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;

use crate::builder::SaverBuilder;
use crate::checkpoints::{PREFIX, RedisCheckpoints};
use crate::compression::Compression;

/// Settings of [`RedisCheckpoints`] under the names that other savers for Redis have for them, so that a configuration file can
/// stay as it is. `RedisCheckpoints::builder` has more settings.
///
/// ```
/// use pmcptask_checkpoint::{CheckpointsConfig, RedisCheckpoints};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let config = r#"{"redis_url": "rediss://db.example.com", "pool_size": 4, "default_ttl_secs": 604800}"#;
/// let config: CheckpointsConfig = serde_json::from_str(config)?;
/// let builder = RedisCheckpoints::from_config(&config).refresh_on_read(true);
/// # drop(builder);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointsConfig {
    /// The servers, as [`RedisBackend::new`](pmcptask_client::RedisBackend::new) takes them. Default: `redis://127.0.0.1:6379`.
    pub redis_url: String,
    /// Connections to each server, all of which are opened at once. Default: 1. See [`SaverBuilder::connections`].
    pub pool_size: usize,
    /// How many seconds each checkpoint lives after it was saved. Default: none, for ever.
    pub default_ttl_secs: Option<u64>,
    /// The start of all keys. Default: `checkpoints`.
    pub key_prefix: String,
    /// Whether the servers are a cluster, also if the URL does not say so. Default: no.
    pub enable_cluster: bool,
    /// Whether records from 1 KB on are compressed. Default: yes.
    pub compression: bool,
}

impl Default for CheckpointsConfig {
    fn default() -> Self {
        Self {
            redis_url: "redis://127.0.0.1:6379".to_owned(),
            pool_size: 1,
            default_ttl_secs: None,
            key_prefix: PREFIX.to_owned(),
            enable_cluster: false,
            compression: true,
        }
    }
}

/// Without the URL, which may have a password.
impl fmt::Debug for CheckpointsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CheckpointsConfig")
            .field("pool_size", &self.pool_size)
            .field("default_ttl_secs", &self.default_ttl_secs)
            .field("key_prefix", &self.key_prefix)
            .field("enable_cluster", &self.enable_cluster)
            .field("compression", &self.compression)
            .finish_non_exhaustive()
    }
}

impl RedisCheckpoints {
    /// Returns a builder with these settings.
    pub fn from_config(config: &CheckpointsConfig) -> SaverBuilder<Self> {
        let compression = if config.compression { Compression::default() } else { Compression::Off };
        let builder = Self::builder(&url(config))
            .prefix(&config.key_prefix)
            .connections(config.pool_size)
            .compression(compression);
        match config.default_ttl_secs {
            Some(seconds) => builder.default_ttl(Duration::from_secs(seconds)),
            None => builder,
        }
    }
}

/// The URL, of a cluster if the configuration says so.
fn url(config: &CheckpointsConfig) -> String {
    match config.redis_url.split_once("://") {
        // The client refuses a scheme that no cluster has.
        Some((scheme, servers)) if config.enable_cluster && !scheme.contains('+') => {
            format!("{scheme}+cluster://{servers}")
        }
        _ => config.redis_url.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_is_that_of_a_cluster_where_the_configuration_says_so() {
        for (redis_url, enable_cluster, expected) in [
            ("redis://a:1", false, "redis://a:1"),
            ("redis://a:1", true, "redis+cluster://a:1"),
            ("rediss://u:p@a", true, "rediss+cluster://u:p@a"),
            ("redis+cluster://a", true, "redis+cluster://a"),
        ] {
            let config =
                CheckpointsConfig { redis_url: redis_url.to_owned(), enable_cluster, ..Default::default() };
            assert_eq!(url(&config), expected);
        }
    }

    #[test]
    fn unknown_setting_is_refused_by_name_and_debug_shows_no_password() {
        let error =
            serde_json::from_str::<CheckpointsConfig>(r#"{"pool": 4}"#).map_err(|error| error.to_string());
        assert!(error.is_err_and(|text| text.contains("`pool`") && text.contains("`pool_size`")));
        let config = CheckpointsConfig { redis_url: "redis://:secret@a".to_owned(), ..Default::default() };
        assert!(!format!("{config:?}").contains("secret"));
    }
}
