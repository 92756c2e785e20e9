//! Which node of a cluster has which slots.

use std::collections::HashMap;

use redis::Value;

/// The number of slots of a cluster.
pub(super) const SLOTS: u16 = 16_384;

/// The CRC16 of the cluster specification.
const CRC16: crc::Crc<u16, crc::Table<1>> = crc::Crc::<u16, crc::Table<1>>::new(&crc::CRC_16_XMODEM);

/// The slot of a key: that of its hash tag if it has one, between its first `{` and the next `}`.
pub(super) fn slot_of(key: &str) -> u16 {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
    let hashed = tag.filter(|tag| !tag.is_empty()).unwrap_or(key);
    CRC16.checksum(hashed.as_bytes()) % SLOTS
}

/// Host and port of a node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Location {
    pub(super) host: String,
    pub(super) port: u16,
}

impl Location {
    /// Reads the `host:port` of a redirect. An empty host means the node that sent the redirect. `?` is a
    /// host that this node does not know.
    pub(super) fn parse(text: &str, sender: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let host = match host {
            "" => sender,
            "?" => return None,
            host => host,
        };
        Some(Self { host: host.to_owned(), port: port.parse().ok()? })
    }
}

/// A primary and its replicas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shard {
    pub(super) primary: Location,
    pub(super) replicas: Vec<Location>,
    /// First and last slot of each range.
    pub(super) slots: Vec<(u16, u16)>,
}

/// Reads the reply to `CLUSTER SLOTS`. `sender` is the host of the node that replied. `None` if the reply has
/// another form or no slots.
pub(super) fn read(reply: &Value, sender: &str) -> Option<Vec<Shard>> {
    let Value::Array(ranges) = reply else { return None };
    let mut shards: HashMap<Location, Shard> = HashMap::new();
    for range in ranges {
        let Value::Array(range) = range else { return None };
        let [Value::Int(first), Value::Int(last), primary, replicas @ ..] = range.as_slice() else {
            return None;
        };
        let slots = (u16::try_from(*first).ok()?, u16::try_from(*last).ok()?);
        let Some(primary) = location(primary, sender) else { continue };
        let shard = shards.entry(primary.clone()).or_insert_with(|| Shard {
            primary,
            replicas: replicas.iter().filter_map(|replica| location(replica, sender)).collect(),
            slots: Vec::new(),
        });
        shard.slots.push(slots);
    }
    let mut shards: Vec<_> = shards.into_values().collect();
    // A fixed order, in which the replies of different nodes can be compared.
    shards.sort_by(|one, other| one.primary.cmp(&other.primary));
    for shard in &mut shards {
        shard.slots.sort_unstable();
        shard.replicas.sort_unstable();
    }
    (!shards.is_empty()).then_some(shards)
}

/// Reads a node: host, port, id and further properties. A node without a host is the sender itself.
fn location(node: &Value, sender: &str) -> Option<Location> {
    let Value::Array(node) = node else { return None };
    let [host, Value::Int(port), more @ ..] = node.as_slice() else { return None };
    let host = match text(host)? {
        "" => sender,
        // The sender does not know the node's name, but may know its address.
        "?" => address(more.get(1)?)?,
        host => host,
    };
    Some(Location { host: host.to_owned(), port: u16::try_from(*port).ok()? })
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(text) => std::str::from_utf8(text).ok(),
        Value::SimpleString(text) => Some(text),
        Value::Nil => Some(""),
        _ => None,
    }
}

/// The `ip` among a node's further properties.
fn address(known: &Value) -> Option<&str> {
    let is_ip = |name: &Value| text(name) == Some("ip");
    match known {
        Value::Map(pairs) => text(&pairs.iter().find(|(name, _)| is_ip(name))?.1),
        Value::Array(words) => {
            text(words.chunks_exact(2).find(|pair| pair.first().is_some_and(is_ip))?.last()?)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn slot_is_that_of_the_hash_tag() {
        // As CLUSTER KEYSLOT of a server says.
        for (key, slot) in [
            ("foo", 12_182),
            ("123456789", 12_739),
            ("pmcp:tasks:{foo}:t", 12_182),
            ("{foo}bar{other}", 12_182),
            ("pmcp:tasks:{{foo}}:t", slot_of("{foo")),
        ] {
            assert_eq!(slot_of(key), slot, "{key}");
        }
        assert_ne!(slot_of("{}foo"), slot_of(""));
        assert_ne!(slot_of("{foo"), slot_of("foo"));
    }

    fn node(host: Value, port: i64) -> Value {
        Value::Array(vec![host, Value::Int(port), Value::BulkString(b"id".to_vec()), Value::Array(vec![])])
    }

    fn at(host: &str, port: u16) -> Location {
        Location { host: host.to_owned(), port }
    }

    #[test]
    fn shard_has_all_its_ranges_and_replicas() {
        let host = |host: &str| Value::BulkString(host.as_bytes().to_vec());
        let reply = Value::Array(vec![
            Value::Array(vec![
                Value::Int(0),
                Value::Int(5),
                node(host("a"), 1),
                node(host(""), 2),
                node(Value::Nil, 3),
            ]),
            Value::Array(vec![Value::Int(9), Value::Int(9), node(host("a"), 1), node(host("?"), 2)]),
        ]);
        let shard = Shard {
            primary: at("a", 1),
            replicas: vec![at("sender", 2), at("sender", 3)],
            slots: vec![(0, 5), (9, 9)],
        };
        assert_eq!(read(&reply, "sender").unwrap(), [shard]);
    }

    #[test]
    fn node_with_an_unknown_name_is_found_by_its_address() {
        let bulk = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let ip = [bulk("ip"), bulk("10.0.0.2")];
        let flat = Value::Array(ip.to_vec());
        let [name, address] = ip;
        let map = Value::Map(vec![(name, address)]);
        for (known, host) in [(flat, Some("10.0.0.2")), (map, Some("10.0.0.2")), (Value::Array(vec![]), None)]
        {
            let node = Value::Array(vec![bulk("?"), Value::Int(1), bulk("id"), known]);
            assert_eq!(location(&node, "sender").map(|location| location.host).as_deref(), host);
        }
    }

    #[test]
    fn reply_that_names_no_slot_is_none() {
        let bad =
            Value::Array(vec![Value::Array(vec![Value::Int(0), Value::Int(99_999), node(Value::Nil, 1)])]);
        for reply in [Value::Nil, Value::Array(vec![]), Value::Array(vec![Value::Int(1)]), bad] {
            assert_eq!(read(&reply, "h"), None, "{reply:?}");
        }
    }

    #[test]
    fn redirect_may_leave_out_the_host() {
        assert_eq!(Location::parse("10.0.0.1:7000", "h"), Some(at("10.0.0.1", 7000)));
        assert_eq!(Location::parse("::1:7000", "h"), Some(at("::1", 7000)));
        assert_eq!(Location::parse(":7000", "h"), Some(at("h", 7000)));
        assert_eq!(Location::parse("nonsense", "h"), None);
        assert_eq!(Location::parse("?:7000", "h"), None);
    }
}
