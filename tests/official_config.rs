//! The 13 official pattern files: carried as published, read and written without changing a value.

use minference::pattern::{AttentionMode, HeadPattern, OFFICIAL, OfficialFile, PatternConfig, Score};
use std::path::{Path, PathBuf};

/// File, layers, heads, vertical-slash heads, A-shape heads, and the smallest and largest score, counted apart from this
/// crate.
const FILES: [(&str, usize, usize, usize, usize, f64, f64); 13] = [
    ("GLM_4_9B_1M_instruct_kv_out_v32_fit_o_best_pattern.json", 40, 32, 1280, 0, 0.3956, 1.),
    ("Llama_3.1_70B_Instruct_128k_kv_out_v32_fit_o_best_pattern_v2.json", 80, 64, 5120, 0, 0.3493, 1.00033),
    ("Llama_3.1_8B_Instruct_128k_kv_out_v32_fit_o_best_pattern.json", 32, 32, 1024, 0, 0.44, 1.),
    ("Llama_3.1_8B_Instruct_128k_kv_out_v32_fit_o_best_pattern_v2.json", 32, 32, 1024, 0, 0.44, 1.),
    ("Llama_3_70B_Instruct_262k_kv_out_v32_fit_o_best_pattern.json", 80, 64, 5120, 0, 0.3512, 1.00048),
    ("Llama_3_8B_Instruct_262k_kv_out_v32_fit_o_best_pattern.json", 32, 32, 1024, 0, 0., 14_994_473.),
    ("Phi_3_mini_128k_instruct_kv_out_v32_fit_o_best_pattern.json", 32, 32, 981, 43, 0.3335, 1.),
    ("Qwen2.5_32B_Instruct_128k_kv_out_v32_fit_o_best_pattern.json", 64, 40, 2560, 0, 0.4335, 1.00016),
    ("Qwen2.5_72B_Instruct_128k_kv_out_v32_fit_o_best_pattern.json", 80, 64, 5120, 0, 0.3366, 1.),
    ("Qwen2.5_7B_Instruct_128k_instruct_kv_out_v32_fit_o_best_pattern.json", 28, 28, 784, 0, 0.4459, 1.00018),
    ("Qwen2.5_7B_Instruct_1M.json", 28, 28, 784, 0, 0.463, 1.00005),
    ("Qwen2_7B_Instruct_128k_instruct_kv_out_v32_fit_o_best_pattern.json", 28, 28, 784, 0, 0.5261, 1.00002),
    ("Yi_9B_200k_kv_out_v32_fit_o_best_pattern.json", 48, 32, 1536, 0, 0., 21_960_054.),
];

fn carried(name: &str) -> &'static OfficialFile {
    OFFICIAL.iter().find(|f| f.file == name).unwrap_or_else(|| panic!("{name} is not carried"))
}

/// `assert_eq` for texts too long to print.
#[track_caller]
fn assert_same(name: &str, got: &str, want: &str) {
    if got == want {
        return;
    }
    let at = got.bytes().zip(want.bytes()).take_while(|(a, b)| a == b).count();
    let part = |text: &str| text.get(at.saturating_sub(60)..(at + 20).min(text.len())).map(str::to_owned);
    panic!("{name}: byte {at}: {:?}, expected {:?}", part(got), part(want));
}

#[test]
fn every_file_is_carried_and_survives_a_round_trip_byte_for_byte() {
    assert_eq!(OFFICIAL.len(), FILES.len());
    let directory = tempfile::tempdir().unwrap();
    for (name, ..) in FILES {
        let json = carried(name).json();
        let config = PatternConfig::from_json(json).unwrap();
        assert_same(name, &config.to_json(), json);
        let path = directory.path().join(name);
        config.write(&path).unwrap();
        assert_same(name, &std::fs::read_to_string(&path).unwrap(), json);
        assert_eq!(PatternConfig::read(&path).unwrap(), config, "{name}");
    }
}

#[test]
fn files_hold_the_patterns_counted_elsewhere() {
    for (name, layers, heads, vertical_slash, a_shape, least, most) in FILES {
        let config = carried(name).config().unwrap();
        assert_eq!((config.n_layers(), config.n_heads()), (layers, heads), "{name}");
        let entries: Vec<_> = (0..layers).flat_map(|l| (0..heads).map(move |h| (l, h))).collect();
        let entries: Vec<_> =
            entries.iter().map(|&(l, h)| config.entry(l, h).expect("every head has an entry")).collect();
        let count = |kind: fn(&HeadPattern) -> bool| entries.iter().filter(|e| kind(&e.pattern())).count();
        assert_eq!(count(|p| matches!(p, HeadPattern::VerticalSlash { .. })), vertical_slash, "{name}");
        assert_eq!(count(|p| matches!(p, HeadPattern::AShape { .. })), a_shape, "{name}");
        let integer = most > 2.;
        assert!(
            entries.iter().all(|e| matches!(e.score, Score::Integer(_)) == integer || e.score == Score::Integer(1))
        );
        let scores = entries.iter().map(|e| match e.score {
            Score::Integer(n) => n as f64,
            Score::Float(x) => x,
        });
        let (low, high) = scores.fold((f64::MAX, f64::MIN), |(low, high), s| (low.min(s), high.max(s)));
        let near = |got: f64, want: f64| (got - want).abs() <= 5e-5 * want.max(1.);
        assert!(near(low, least) && near(high, most), "{name}: scores {low} to {high}, expected {least} to {most}");
    }
}

#[test]
fn the_full_folder_is_the_same_where_it_lies() {
    let folder: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/minference-configs");
    if !folder.is_dir() {
        return;
    }
    for (name, ..) in FILES {
        let path = folder.join(name);
        assert_same(name, &std::fs::read_to_string(&path).unwrap(), carried(name).json());
        assert_eq!(PatternConfig::read(&path).unwrap(), carried(name).config().unwrap());
    }
}

#[test]
fn a_mode_takes_patterns_from_the_file_and_the_fallback_beside_it() {
    let config = carried("Phi_3_mini_128k_instruct_kv_out_v32_fit_o_best_pattern.json").config().unwrap();
    let mode = AttentionMode::Config(config.clone());
    let layer = mode.patterns(8, 32);
    assert!(layer.contains(&HeadPattern::AShape { n_init: 100, n_local: 800 }), "{layer:?}");
    assert_eq!(mode.patterns(8, 40)[32..], [HeadPattern::VerticalSlash { columns: 1000, offsets: 6096 }; 8]);
    assert_eq!(mode.name(), "config");
    assert!(mode.check_model(32, 32).is_ok());
    let error = mode.check_model(24, 16).unwrap_err().to_string();
    assert!(error.contains("32 layers x 32 heads") && error.contains("24 x 16"), "{error}");
}
