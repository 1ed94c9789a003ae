//! `minference devices`: what can run here.

use super::console::{Console, table};
use super::device::devices as all_devices;
use crate::Result;
use crate::backend::DeviceInfo;
use serde_json::{Value, json};

/// Runs the subcommand.
pub fn devices(console: &Console) -> Result<()> {
    let devices = all_devices();
    if console.json {
        console.print_json(&json!({ "devices": devices.iter().map(describe).collect::<Vec<_>>() }));
        return Ok(());
    }
    let rows: Vec<_> = devices
        .iter()
        .map(|d| {
            let memory = if d.memory_bytes > 0 {
                format!("{:.1} GiB", d.memory_bytes as f64 / (1u64 << 30) as f64)
            } else {
                "?".into()
            };
            let software = if d.is_cpu && d.backend != "cpu" { " (software)" } else { "" };
            vec![d.id.clone(), d.api.clone(), format!("{}{software}", d.name), memory, features(d)]
        })
        .collect();
    console.print(&table(&["id", "api", "name", "memory", "features"], &rows));
    Ok(())
}

/// The JSON of one device.
pub fn describe(d: &DeviceInfo) -> Value {
    json!({
        "id": d.id, "backend": d.backend, "api": d.api, "name": d.name, "memory_bytes": d.memory_bytes, "is_cpu": d.is_cpu,
        "tier": d.tier,
        "features": { "f16": d.f16, "subgroup": d.subgroup, "cooperative_matrix": d.cooperative_matrix },
    })
}

fn features(d: &DeviceInfo) -> String {
    let mut out = vec![d.tier.clone()];
    out.extend(d.f16.then(|| "f16".to_string()));
    out.extend((d.subgroup > 0).then(|| format!("subgroup {}", d.subgroup)));
    out.extend((!d.cooperative_matrix.is_empty()).then(|| d.cooperative_matrix.clone()));
    out.retain(|text| !text.is_empty());
    out.join(", ")
}
