//! Every shader in every form that pipelines are made from, for every kind of device, without a device: it validates,
//! it can be written for Vulkan, Metal and DX12, and its parameters lie where the Rust structs put them.
#![cfg(feature = "wgpu")]

use minference::backend::params::*;
use minference::backend::wgpu::launch::*;
use minference::backend::wgpu::link::{self, Module, Specialisation};
use minference::backend::wgpu::{Traits, specialisations};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Every form of every shader on the known devices, by label.
fn all() -> BTreeMap<String, Specialisation> {
    Traits::KNOWN.iter().flat_map(|(_, traits)| specialisations(traits)).map(|s| (s.label(), s)).collect()
}

/// Field names of the Rust struct whose bytes a kernel's immediates begin with, and what the backend adds to them.
fn fields(kernel: &str) -> Vec<&'static str> {
    let (params, more): (&[&str], &[&str]) = match kernel {
        "add" => (AddParams::FIELDS, &[]),
        "append_kv" => (AppendKvParams::FIELDS, &[]),
        "cast" => (CastParams::FIELDS, &[]),
        "expand" => (ExpandParams::FIELDS, &[]),
        "coop_layout" => (&[], &[]),
        "embed" => (EmbedParams::FIELDS, &["first_id"]),
        "matmul" | "matmul_coop" | "matmul_frags" | "matvec" => (MatmulParams::FIELDS, &[]),
        "pack_kv" | "unpack_kv" => (PackKvParams::FIELDS, &[]),
        "rms_norm" => (RmsNormParams::FIELDS, &[]),
        "rope" => (RopeParams::FIELDS, &[]),
        "silu_mul" => (SiluMulParams::FIELDS, &[]),
        "attention" | "attention_rows" | "attention_coop" => (AttentionBand::FIELDS, &[]),
        "clamp_columns" => (ClampColumns::FIELDS, &[]),
        "clip_index_keep" | "clip_index_rows" => (ClipIndexParams::FIELDS, &[]),
        "merge_attention" => (MergeBand::FIELDS, &[]),
        "decode_attention" => (DecodeBand::FIELDS, &[]),
        "decode_attention_merge" => (DecodeMerge::FIELDS, &[]),
        "build_index_dense" | "build_index_keep" | "build_index_place" | "build_index_rows" => {
            (BuildIndexParams::FIELDS, &[])
        }
        "pool_blocks" => (PoolBlocksParams::FIELDS, &[]),
        "score_blocks" | "select_blocks" => (ScoreBlocksParams::FIELDS, &[]),
        "score_last_queries_rows"
        | "score_last_queries_rows_coop"
        | "score_last_queries_sums"
        | "score_last_queries_sums_coop" => (LastQueriesBand::FIELDS, &[]),
        "score_last_queries_merge" => (LastQueriesMerge::FIELDS, &[]),
        "select_top_k" => (SelectTopKParams::FIELDS, &[]),
        "count_by_mass" => (CountByMassParams::FIELDS, &[]),
        "group_offsets" => (GroupOffsetsParams::FIELDS, &[]),
        "settle_heads" => (SettleHeadsParams::FIELDS, &[]),
        "fold_rows" => (FoldRowsParams::FIELDS, &[]),
        "weigh_antidiagonals" => (WeighAntidiagonalsParams::FIELDS, &[]),
        "share_scores" => (ShareScoresParams::FIELDS, &[]),
        "weigh_blocks" | "select_weighed_blocks" => (WeighBlocksParams::FIELDS, &[]),
        other => panic!("tests/shaders.rs: say which parameters {other} takes"),
    };
    [params, more].concat()
}

#[test]
fn every_file_is_linked_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders");
    let stems = |dir: &Path| -> BTreeSet<String> {
        let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        let wgsl = files.filter(|path| path.extension().is_some_and(|e| e == "wgsl"));
        wgsl.map(|path| path.file_stem().unwrap().to_str().unwrap().to_string()).collect()
    };
    assert_eq!(stems(&root), link::kernels().map(String::from).collect(), "shaders/ and link.rs");
    assert_eq!(
        stems(&root.join("shared")),
        link::fragments().map(String::from).collect(),
        "shaders/shared/ and link.rs"
    );
    let used: BTreeSet<String> = all().values().map(|s| s.kernel().to_string()).collect();
    assert_eq!(used, link::kernels().map(String::from).collect(), "kernels no operation runs");
}

#[test]
fn labels_are_unique() {
    for (name, traits) in Traits::KNOWN {
        let list = specialisations(traits);
        let labels: BTreeSet<String> = list.iter().map(Specialisation::label).collect();
        assert_eq!(labels.len(), list.len(), "{name}");
    }
}

#[test]
fn all_validate_and_compile_for_every_api() {
    for (label, specialisation) in all() {
        let module = specialisation.module().unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(module.ir.entry_points.len(), 1, "{label}");
        assert_eq!(module.ir.entry_points[0].name, "main", "{label}");
        spirv(&label, &module);
        // What SPIR-V alone can say.
        if !specialisation.is_spirv_only() {
            metal(&label, &module);
        }
        if !specialisation.is_cooperative() {
            hlsl(&label, &module);
        }
    }
}

fn spirv(label: &str, module: &Module) {
    use naga::back::spv;
    let options = spv::Options { lang_version: (1, 3), force_loop_bounding: false, ..Default::default() };
    let words = spv::write_vec(&module.ir, &module.info, &options, None).unwrap_or_else(|e| panic!("{label}: {e}"));
    assert_eq!(words[0], 0x0723_0203, "{label}: SPIR-V's magic number");
    let words = module.spirv().unwrap_or_else(|e| panic!("{label}: {e}"));
    assert_eq!(words[0], 0x0723_0203, "{label}: SPIR-V's magic number");
}

fn metal(label: &str, module: &Module) {
    use naga::back::msl;
    let options = msl::Options { lang_version: (2, 4), ..Default::default() };
    let (text, _) = msl::write_string(&module.ir, &module.info, &options, &Default::default())
        .unwrap_or_else(|e| panic!("{label}: {e}"));
    assert!(text.contains("kernel void"), "{label}");
}

fn hlsl(label: &str, module: &Module) {
    use naga::back::hlsl;
    let target = |register| Some(hlsl::BindTarget { space: 9, register, ..Default::default() });
    let options = hlsl::Options {
        shader_model: hlsl::ShaderModel::V6_6,
        immediates_target: target(0),
        special_constants_binding: target(1),
        ..Default::default()
    };
    let mut text = String::new();
    let pipeline = Default::default();
    hlsl::Writer::new(&mut text, &options, &pipeline)
        .write(&module.ir, &module.info, None)
        .unwrap_or_else(|e| panic!("{label}: {e}"));
    assert!(text.contains("numthreads"), "{label}");
}

/// Bindings are numbered without gaps, and the immediates are the parameters' fields in order, 4 bytes each as in the
/// Rust structs (which hold u32 and f32 only), then `<binding>_at` for every binding in order.
#[test]
fn parameters_and_bindings_match_the_rust_side() {
    for (label, specialisation) in all() {
        let module = specialisation.module().unwrap_or_else(|e| panic!("{e}"));
        let bindings = module.bindings();
        let indices: Vec<u32> = bindings.iter().map(|b| b.index).collect();
        assert_eq!(indices, (0..bindings.len() as u32).collect::<Vec<_>>(), "{label}");
        let placed = bindings.iter().map(|b| format!("{}_at", b.name));
        let want: Vec<(String, u32)> = fields(specialisation.kernel())
            .iter()
            .map(|name| name.to_string())
            .chain(placed)
            .zip((0..).step_by(4))
            .collect();
        let (got, size) = module.immediates();
        assert_eq!(got, want, "{label}");
        assert_eq!(size as usize, 4 * want.len(), "{label}");
        assert!(size <= 128, "{label}: Vulkan promises 128 bytes of push constants, this has {size}");
    }
}
