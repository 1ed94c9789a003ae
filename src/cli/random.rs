//! `--random-weights`: a model from its config alone, for latency.

use crate::model::{Model, presets};
use crate::pattern::AttentionMode;
use crate::splitmix::SplitMix64;
use crate::{DType, Error, Result};
use std::path::Path;

/// Types that `--weight-type` takes.
const WEIGHT_TYPES: [DType; 5] = [DType::F32, DType::F16, DType::BF16, DType::Q8_0, DType::Q4K];

/// Flags for a model without a checkpoint.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct RandomArgs {
    /// Makes the weights up from config.json alone, the same for the same --seed: for latency, not for answers. --model
    /// may then be an embedded config: llama-3-8b-262k, llama-3-8b-1m, llama-3.1-8b, yi-6b-200k, yi-9b-200k, glm-4-9b-1m,
    /// phi-3-mini-128k, qwen2-7b-128k, qwen2.5-7b-1m.
    #[arg(long)]
    pub random_weights: bool,
    /// How random matrices are stored: f32, f16, bf16, q8_0 or q4_k.
    #[arg(long, value_name = "TYPE", default_value = "f16", requires = "random_weights")]
    weight_type: String,
    /// Only so many layers of the config.
    #[arg(long, value_name = "N", requires = "random_weights")]
    layers: Option<usize>,
}

impl RandomArgs {
    /// Weights of this type, or none made up, and so many layers.
    pub fn of(weight_type: Option<&str>, layers: Option<usize>) -> Self {
        let random_weights = weight_type.is_some();
        Self { random_weights, weight_type: weight_type.unwrap_or_default().to_owned(), layers }
    }

    /// The type of the weights to make up, if that is asked for.
    pub fn weight_type(&self) -> Result<Option<DType>> {
        if !self.random_weights {
            return Ok(None);
        }
        let known = WEIGHT_TYPES.iter().find(|dtype| dtype.name() == self.weight_type);
        known.copied().map(Some).ok_or_else(|| {
            let names = WEIGHT_TYPES.map(DType::name).join(", ");
            Error::invalid(format!("--weight-type: expected one of {names}, found {:?}", self.weight_type))
        })
    }

    /// The model of a directory's `config.json` or of an embedded config, whole.
    pub fn open(&self, name: &str, dtype: DType, seed: u64) -> Result<Model> {
        let path = Path::new(name);
        let model = match path.exists() {
            true if path.is_dir() => Model::open_random(path, dtype, seed)?,
            true => return Err(Error::file(path, "--random-weights: expected the directory of a config.json")),
            false => Model::random(name, presets::config(name)?, dtype, seed),
        };
        match self.layers {
            Some(layers) if layers == 0 || layers > model.config.n_layers => {
                let most = model.config.n_layers;
                Err(Error::invalid(format!("--layers: expected 1 to {most}, the layers of {name}, found {layers}")))
            }
            _ => Ok(model),
        }
    }

    /// Cuts a model, and patterns that were found for all of it, to `--layers`.
    pub fn cut(&self, model: &mut Model, mode: &mut AttentionMode) {
        let Some(layers) = self.layers else { return };
        model.config.n_layers = layers;
        match mode {
            AttentionMode::Config(config) => *config = std::mem::take(config).first_layers(layers),
            AttentionMode::Extra { over, .. } => self.cut(model, over),
            _ => {}
        }
    }
}

/// Token ids drawn evenly from a vocabulary, the same for the same seed.
pub fn random_ids(tokens: usize, vocab: usize, seed: u64) -> Vec<u32> {
    let mut rng = SplitMix64::new(seed);
    (0..tokens).map(|_| ((u128::from(rng.bits()) * vocab as u128) >> 64) as u32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_ids_are_those_of_the_seed_and_of_the_vocabulary() {
        let ids = random_ids(10_000, 7, 1);
        assert_eq!(ids, random_ids(10_000, 7, 1));
        assert_ne!(ids, random_ids(10_000, 7, 2));
        for id in 0..7 {
            let share = ids.iter().filter(|i| **i == id).count();
            assert!((1200..1700).contains(&share), "{id}: {share}");
        }
    }

    /// The help's list is written out there.
    #[test]
    fn the_help_names_every_preset() {
        use clap::CommandFactory;
        #[derive(clap::Parser)]
        struct Flags {
            #[command(flatten)]
            args: RandomArgs,
        }
        let help = Flags::command().render_long_help().to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(presets::names().all(|name| help.contains(name)), "{help}");
    }
}
