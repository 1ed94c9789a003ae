//! The pattern files that Microsoft publishes with MInference 1.0, and which model each is for.

use super::PatternConfig;
use crate::{Error, Result};

/// A pattern file that the crate carries.
#[derive(Clone, Copy, Debug)]
pub struct OfficialFile {
    /// Its name in the official repository.
    pub file: &'static str,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads of a layer.
    pub heads: usize,
    /// Names of the models it is for, as far as they identify the family and size, lower case, letters and digits only.
    pub models: &'static [&'static str],
    json: &'static str,
}

macro_rules! official {
    ($($file:literal $layers:literal x $heads:literal: $models:expr;)*) => {
        /// All of them. Where names are prefixes of each other the longer one comes first. The first version of the
        /// Llama-3.1-8B file is left to `--patterns`: the official map does not use it either.
        pub const OFFICIAL: &[OfficialFile] = &[$(OfficialFile {
            file: $file,
            layers: $layers,
            heads: $heads,
            models: &$models,
            json: include_str!(concat!("official/", $file)),
        }),*];
    };
}

official! {
    "Qwen2.5_7B_Instruct_1M.json" 28 x 28: ["qwen257binstruct1m", "qwen257b1m"];
    "Qwen2.5_7B_Instruct_128k_instruct_kv_out_v32_fit_o_best_pattern.json" 28 x 28: ["qwen257b"];
    "Qwen2.5_32B_Instruct_128k_kv_out_v32_fit_o_best_pattern.json" 64 x 40: ["qwen2532b"];
    "Qwen2.5_72B_Instruct_128k_kv_out_v32_fit_o_best_pattern.json" 80 x 64: ["qwen2572b"];
    "Qwen2_7B_Instruct_128k_instruct_kv_out_v32_fit_o_best_pattern.json" 28 x 28: ["qwen27b"];
    "Llama_3.1_8B_Instruct_128k_kv_out_v32_fit_o_best_pattern_v2.json" 32 x 32: ["llama318b"];
    "Llama_3.1_8B_Instruct_128k_kv_out_v32_fit_o_best_pattern.json" 32 x 32: [];
    "Llama_3.1_70B_Instruct_128k_kv_out_v32_fit_o_best_pattern_v2.json" 80 x 64: ["llama3170b"];
    "Llama_3_8B_Instruct_262k_kv_out_v32_fit_o_best_pattern.json" 32 x 32:
        ["llama38binstruct262k", "llama38binstructgradient", "llama38b262k", "llama38b1048k", "llama38b1m", "llama38b4194k"];
    "Llama_3_70B_Instruct_262k_kv_out_v32_fit_o_best_pattern.json" 80 x 64:
        ["llama370binstructgradient", "llama370binstruct262k", "llama370b262k", "llama370b1048k", "llama370b1m"];
    "GLM_4_9B_1M_instruct_kv_out_v32_fit_o_best_pattern.json" 40 x 32: ["glm49bchat1m", "glm49b1m"];
    "Yi_9B_200k_kv_out_v32_fit_o_best_pattern.json" 48 x 32: ["yi9b200k"];
    "Phi_3_mini_128k_instruct_kv_out_v32_fit_o_best_pattern.json" 32 x 32: ["phi3mini128k"];
}

impl OfficialFile {
    /// Its patterns.
    pub fn config(&self) -> Result<PatternConfig> {
        PatternConfig::from_json(self.json).map_err(|e| Error::invalid(format!("{}: {e}", self.file)))
    }

    /// Its text, byte for byte as published.
    pub fn json(&self) -> &'static str {
        self.json
    }

    /// The file for a model by its name (a Hugging Face name or a path that holds it; case and punctuation do not
    /// matter), checked against the model's size: both must match, since four files fit every 32 x 32 model and none of
    /// them another model's heads.
    pub fn find(name: &str, layers: usize, heads: usize) -> Result<&'static Self> {
        let Some(found) = Self::named(name) else {
            let same: Vec<&str> =
                OFFICIAL.iter().filter(|f| (f.layers, f.heads) == (layers, heads)).map(|f| f.file).collect();
            let same = if same.is_empty() { "none".to_owned() } else { same.join(", ") };
            return Err(Error::invalid(format!(
                "no official pattern file is known for {name:?} ({layers} layers x {heads} heads): name one with \
                 --patterns FILE; official files of this size, for other models: {same}"
            )));
        };
        if (found.layers, found.heads) != (layers, heads) {
            return Err(Error::invalid(format!(
                "{}: {} layers x {} heads do not match the {layers} x {heads} of {name:?}",
                found.file, found.layers, found.heads
            )));
        }
        Ok(found)
    }

    /// The file for a model of this name, whatever its size.
    pub fn named(name: &str) -> Option<&'static Self> {
        let plain: String = name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
        OFFICIAL.iter().find(|f| f.models.iter().any(|model| plain.contains(model)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_the_official_map_finds_its_file() {
        for (name, layers, heads, start) in [
            ("gradientai/Llama-3-8B-Instruct-262k", 32, 32, "Llama_3_8B"),
            ("gradientai/Llama-3-8B-Instruct-Gradient-1048k", 32, 32, "Llama_3_8B"),
            ("gradientai/Llama-3-8B-Instruct-Gradient-4194k", 32, 32, "Llama_3_8B"),
            ("gradientai/Llama-3-70B-Instruct-Gradient-262k", 80, 64, "Llama_3_70B"),
            ("gradientai/Llama-3-70B-Instruct-Gradient-1048k", 80, 64, "Llama_3_70B"),
            (
                "meta-llama/Meta-Llama-3.1-8B-Instruct",
                32,
                32,
                "Llama_3.1_8B_Instruct_128k_kv_out_v32_fit_o_best_pattern_v2",
            ),
            ("meta-llama/Llama-3.1-8B-Instruct", 32, 32, "Llama_3.1_8B_Instruct_128k_kv_out_v32_fit_o_best_pattern_v2"),
            ("meta-llama/Meta-Llama-3.1-70B-Instruct", 80, 64, "Llama_3.1_70B"),
            ("01-ai/Yi-9B-200K", 48, 32, "Yi_9B"),
            ("THUDM/glm-4-9b-chat-1m", 40, 32, "GLM_4"),
            ("microsoft/Phi-3-mini-128k-instruct", 32, 32, "Phi_3"),
            ("Qwen/Qwen2-7B-Instruct", 28, 28, "Qwen2_7B"),
            ("Qwen/Qwen2.5-7B-Instruct", 28, 28, "Qwen2.5_7B_Instruct_128k"),
            ("Qwen/Qwen2.5-7B-Instruct-1M", 28, 28, "Qwen2.5_7B_Instruct_1M"),
            ("Qwen/Qwen2.5-32B-Instruct", 64, 40, "Qwen2.5_32B"),
            ("Qwen/Qwen2.5-72B-Instruct", 80, 64, "Qwen2.5_72B"),
            ("models--gradientai--Llama-3-8B-Instruct-Gradient-1048k/snapshots/8697fb", 32, 32, "Llama_3_8B"),
            ("llama-3-8b-1m", 32, 32, "Llama_3_8B"),
        ] {
            let found = OfficialFile::find(name, layers, heads).unwrap();
            assert!(found.file.starts_with(start), "{name}: {}", found.file);
            found.config().unwrap();
        }
    }

    #[test]
    fn sizes_and_names_must_match() {
        let error = OfficialFile::find("Qwen/Qwen2.5-7B-Instruct", 24, 14).unwrap_err().to_string();
        assert!(error.contains("28 layers x 28 heads") && error.contains("24 x 14"), "{error}");
        let error = OfficialFile::find("some/Model", 48, 32).unwrap_err().to_string();
        assert!(error.contains("some/Model") && error.contains("Yi_9B_200k"), "{error}");
        assert!(OfficialFile::find("meta-llama/Meta-Llama-3-8B", 32, 32).is_err());
    }

    #[test]
    fn sizes_are_those_of_the_files() {
        for file in OFFICIAL {
            let config = file.config().unwrap();
            assert_eq!((config.n_layers(), config.n_heads()), (file.layers, file.heads), "{}", file.file);
        }
    }
}
