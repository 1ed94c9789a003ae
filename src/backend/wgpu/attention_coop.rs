//! The forms of the attention kernel on cooperative matrices.

use super::attention::HEAD_DIMS;
use super::link::Specialisation;
use super::{Tier, Traits};
use crate::{DType, Error, Result};

/// One form of the kernel: how a workgroup divides its rows, keys and head among subgroups.
///
/// As text: `s8t2r2k32p1`, with `e` behind it for workgroup memory element by element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CoopVariant {
    /// Subgroups of a workgroup.
    pub subgroups: u32,
    /// Subgroups that share rows, each with part of the keys in the first product and of the head in the second: 1 or 2.
    pub team: u32,
    /// Matrix rows (16 or 8 queries each) of a team.
    pub row_tiles: u32,
    /// Keys of a step: 16 or 32.
    pub keys: u32,
    /// Whether the next tile is in registers while this one is multiplied.
    pub prefetch: bool,
    /// Whether workgroup memory is in vectors of four: not on Metal.
    pub vectors: bool,
}

impl std::fmt::Display for CoopVariant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { subgroups, team, row_tiles, keys, prefetch, vectors } = *self;
        write!(f, "s{subgroups}t{team}r{row_tiles}k{keys}p{}", u32::from(prefetch))?;
        f.write_str(if vectors { "" } else { "e" })
    }
}

impl std::str::FromStr for CoopVariant {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (mut rest, vectors) = text.strip_suffix('e').map_or((text, true), |rest| (rest, false));
        let mut number = |letter: char| {
            let digits = rest.strip_prefix(letter)?;
            let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
            rest = &digits[end..];
            digits[..end].parse::<u32>().ok()
        };
        let all = (number('s'), number('t'), number('r'), number('k'), number('p'));
        match (all, rest) {
            ((Some(subgroups), Some(team), Some(row_tiles), Some(keys), Some(prefetch @ 0..=1)), "") => {
                Ok(Self { subgroups, team, row_tiles, keys, prefetch: prefetch == 1, vectors })
            }
            _ => Err(Error::invalid(format!("attention variant: expected one like s8t2r2k32p1, got {text}"))),
        }
    }
}

/// All forms that are tried, best guess first, for matrices of 16 and of 8. Two subgroups (`s2t1r2k32p0`) are left out:
/// an H100 computed them wrongly (relative error 1 and more).
const VARIANTS_16: [&str; 4] = ["s8t2r2k32p1", "s4t1r2k32p0", "s8t1r1k32p1", "s4t1r1k16p1"];
const VARIANTS_8: [&str; 6] =
    ["s4t1r2k16p1e", "s8t1r1k16p1e", "s8t2r2k16p0e", "s8t1r2k16p1", "s16t2r1k16p1", "s4t1r2k32p0"];

impl CoopVariant {
    /// The forms that a device can run for a head dim of the kernels, best guess first; empty without cooperative matrices
    /// and where the size of subgroups is not known beforehand.
    pub fn all(traits: &Traits, head_dim: u32) -> Vec<Self> {
        let texts: &[&str] = match traits.tier {
            Tier::Coop16 => &VARIANTS_16,
            Tier::Coop8 => &VARIANTS_8,
            _ => &[],
        };
        let parsed = texts.iter().filter_map(|text| text.parse::<Self>().ok());
        parsed.filter(|variant| variant.fits(traits, head_dim)).collect()
    }

    /// Queries of a workgroup: 64 or 128.
    pub fn rows(&self, traits: &Traits) -> u32 {
        self.subgroups / self.team * self.row_tiles * traits.matrix()
    }

    /// Bytes of workgroup memory, as the arrays of the kernel add up.
    fn bytes(&self, traits: &Traits, head_dim: u32) -> u32 {
        let rows = self.rows(traits);
        2 * self.keys * (head_dim + 8) * 2 + rows * (self.keys + 8) * (4 + 2) + rows * 4 + self.subgroups * 4
    }

    fn fits(&self, traits: &Traits, head_dim: u32) -> bool {
        let (cm, sg) = (traits.matrix(), traits.subgroup_max);
        let rows = self.rows(traits);
        let lanes_row = sg * self.team.max(1) / (self.row_tiles.min(self.team) * cm).max(1);
        traits.subgroup_min == sg
            && cm > 0
            && head_dim.is_multiple_of(cm * self.team)
            && self.keys.is_multiple_of(cm * self.team)
            && (rows == 64 || rows == 128)
            && (self.keys == 16 || self.keys == 32)
            && lanes_row > 0
            && self.keys.is_multiple_of(4 * lanes_row)
            && (self.keys / self.team).is_multiple_of(4 * sg / cm)
            && self.out_group(traits, head_dim) > 0
            && self.bytes(traits, head_dim) <= traits.workgroup_bytes
    }

    /// Fragments of the output that pass through a subgroup's part of the scores at a time: as many as fit and divide
    /// them, in whole vectors for each lane; 0 where that is impossible.
    fn out_group(&self, traits: &Traits, head_dim: u32) -> u32 {
        let (cm, sg) = (traits.matrix(), traits.subgroup_max);
        let (fragments, room) = (head_dim / cm / self.team, self.keys / self.team / cm);
        let whole = |n: &u32| fragments.is_multiple_of(*n) && (n * cm * cm / 4).is_multiple_of(sg);
        (1..=room).rev().find(whole).unwrap_or(0)
    }

    pub(super) fn specialisation(&self, traits: &Traits, head_dim: u32, out: DType, skips: bool) -> Specialisation {
        let (cm, sg) = (traits.matrix(), traits.subgroup_max);
        let softmax_tiles = (self.row_tiles / self.team).max(1);
        let softmax_rows = self.row_tiles * cm / self.team / softmax_tiles;
        let lanes_row = sg / softmax_rows;
        let lanes_out = sg / cm;
        let out_group = self.out_group(traits, head_dim);
        let threads = sg * self.subgroups;
        Specialisation::new("attention_coop", traits)
            .cooperative()
            .constant("HEAD_DIM", head_dim)
            .constant("CM", cm)
            .constant("SG", sg)
            .constant("SUBGROUPS", self.subgroups)
            .constant("TEAM", self.team)
            .constant("RM", self.row_tiles)
            .constant("SKIPS", u32::from(skips))
            .constant("BC", self.keys)
            .constant("PREFETCH", u32::from(self.prefetch))
            .constant("BLOCKS", self.rows(traits) / 64)
            .constant("ND", head_dim / cm)
            .constant("ND_MEMBER", head_dim / cm / self.team)
            .constant("NB", self.keys / cm)
            .constant("WORDS", 1)
            .constant("NB_MEMBER", self.keys / cm / self.team)
            .constant("STAGE", (self.keys * head_dim / 8).div_ceil(threads))
            .constant("SOFTMAX_TILES", softmax_tiles)
            .constant("LANES_ROW", lanes_row)
            .constant("LOG_LANES_ROW", lanes_row.trailing_zeros())
            .constant("VECS_ROW", self.keys / 4 / lanes_row)
            .constant("LANES_OUT", lanes_out)
            .constant("OUT_GROUP", out_group)
            .constant("OUT_GROUPS", head_dim / cm / self.team / out_group)
            .constant("VECS_OUT", out_group * cm / 4 / lanes_out)
            .write(out, 4)
            .lanes(4)
            .with("invocation_subgroup")
            .with("coop_walk")
            .with("coop_stage")
            .alias("KvUnit", "vec4<f16>")
            .constant("KV_LANES", 4)
            .with("columns_direct")
            .with(if self.vectors { "coop_tiles_vec4" } else { "coop_tiles_scalar" })
    }
}

pub(super) fn specialisations(traits: &Traits, list: &mut Vec<Specialisation>) {
    for head_dim in HEAD_DIMS {
        for variant in CoopVariant::all(traits, head_dim) {
            for skips in [false, true] {
                list.extend(traits.act_or_f32().map(|out| variant.specialisation(traits, head_dim, out, skips)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_variant_parses_and_prints_as_itself() {
        for text in VARIANTS_16.iter().chain(&VARIANTS_8) {
            assert_eq!(text.parse::<CoopVariant>().unwrap().to_string(), *text);
        }
        for text in ["", "s8t2r2k32", "s8t2r2k32p2", "s8t2r2k32p1x", "t2s8r2k32p1"] {
            assert!(text.parse::<CoopVariant>().is_err(), "{text}");
        }
    }

    #[test]
    fn devices_with_matrices_have_a_variant_for_every_head_dim() {
        for (name, traits) in Traits::KNOWN {
            let coop = matches!(traits.tier, Tier::Coop8 | Tier::Coop16);
            for head_dim in HEAD_DIMS {
                let some = !CoopVariant::all(traits, head_dim).is_empty();
                assert_eq!(some, coop, "{name}, head dim {head_dim}");
            }
        }
    }
}
