//! What operators watch is there: the alerts of docs/operations.md, their rules for Prometheus, and the
//! dashboard.
#![cfg(feature = "redis-tests")]
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::BTreeSet;

use pmcptask_tests::{Server, ServerOptions};

const PAGE: &str = include_str!("../../docs/operations.md");
const RULES: &str = include_str!("../../packaging/prometheus/pmcptask.rules.yml");
const DASHBOARD: &str = include_str!("../../packaging/grafana/pmcptask.json");
/// The names of the client's metrics are in no other place.
const CLIENT: &str = include_str!("../../client/src/observe.rs");

/// Each alert of the page: its name, and the rest of its row.
fn alerts() -> Vec<(&'static str, &'static str)> {
    let section = PAGE.split("\n## ").find(|part| part.starts_with("What to watch")).unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| ")?.split_once(" | "));
    rows.filter(|(name, _)| *name != "alert").collect()
}

/// Names of fields and metrics: all have an underscore.
fn names(text: &str) -> BTreeSet<&str> {
    text.split(|letter: char| !letter.is_ascii_lowercase() && letter != '_')
        .filter(|word| word.contains('_'))
        .collect()
}

/// The fields of a replica, which has all that a primary has.
fn fields() -> BTreeSet<String> {
    let primary = Server::start();
    let replica = Server::start_with(&ServerOptions::default().replica_of(&primary));
    let info = replica.wire().call(&["INFO", "everything"]);
    info.lines().filter_map(|line| Some(line.split_once(':')?.0.to_owned())).collect()
}

fn is_of_client(name: &str) -> bool {
    let histogram = name.strip_suffix("_sum").or_else(|| name.strip_suffix("_count"));
    CLIENT.contains(&format!("\"{}\"", histogram.unwrap_or(name)))
}

#[test]
fn every_name_in_the_table_of_alerts_is_a_field_of_the_server_or_a_metric_of_the_client() {
    let (alerts, fields) = (alerts(), fields());
    assert!(alerts.len() > 10, "{alerts:?}");
    for (alert, rest) in alerts {
        for name in names(rest) {
            assert!(fields.contains(name) || is_of_client(name), "{alert}: {name}");
        }
    }
}

#[test]
fn every_field_of_the_module_in_rules_and_dashboard_is_there() {
    let fields = fields();
    for text in [RULES, DASHBOARD] {
        let ours: Vec<_> = names(text).into_iter().filter(|name| name.starts_with("pmcptask_")).collect();
        assert!(ours.len() > 10, "{ours:?}");
        for name in ours {
            // The start of several names: `pmcptask_refused_.*`.
            let is_start = name == "pmcptask_refused_" && fields.iter().any(|field| field.starts_with(name));
            assert!(is_start || fields.contains(name) || is_of_client(name), "{name}");
        }
    }
}

#[test]
fn the_table_of_alerts_explains_every_rule_and_no_other() {
    let rules: BTreeSet<_> = RULES.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert_eq!(alerts().into_iter().map(|(name, _)| name).collect::<BTreeSet<_>>(), rules);
}
