//! The machine and versions that the figures were measured on.

use std::fs;
use std::thread::available_parallelism;

use pmcptask_tests::Server;
use serde_json::{Value, json};

/// Processor, cores, and versions of the server and of the crates that are compared.
pub(crate) fn described(server: &Server) -> Value {
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processors.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let info = server.wire().call(&["INFO", "server"]);
    let version = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    json!({
        "processor": model.map_or("unknown", |(_, model)| model),
        "cores": available_parallelism().map_or(0, usize::from),
        "server": version("valkey_version").map_or_else(
            || format!("Redis {}", version("redis_version").unwrap_or("unknown")),
            |version| format!("Valkey {version}"),
        ),
        "pmcptask": env!("CARGO_PKG_VERSION"),
        "pmcp-tasks": "0.2",
    })
}
