//! The forms of the attention kernel on cooperative matrices whose layout is known: `attention_rows.wgsl`.

use super::attention::HEAD_DIMS;
use super::buffer::Binding;
use super::link::Specialisation;
use super::{Tier, Traits, Wgpu};
use crate::{DType, Error, Result};

/// One form of the kernel: how a workgroup divides its rows among subgroups, and how many keys it takes at a time.
///
/// As text: `w8r1k64`, with `q` behind it for queries in workgroup memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RowsVariant {
    /// Subgroups of a workgroup.
    pub subgroups: u32,
    /// Matrix rows (16 queries each) of a subgroup.
    pub row_tiles: u32,
    /// Keys of a step: 16, 32 or 64.
    pub keys: u32,
    /// Whether queries stay in workgroup memory instead of registers.
    pub queries_stay: bool,
}

impl std::fmt::Display for RowsVariant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { subgroups, row_tiles, keys, queries_stay } = *self;
        write!(f, "w{subgroups}r{row_tiles}k{keys}{}", if queries_stay { "q" } else { "" })
    }
}

impl std::str::FromStr for RowsVariant {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::all_forms()
            .find(|variant| variant.to_string() == text)
            .ok_or_else(|| Error::invalid(format!("attention variant: expected one like w8r1k64, got {text}")))
    }
}

/// All forms that are tried, best guess first. TFLOP/s on an H100, 32,768 tokens, 32 heads of 128 on 8:
///
/// | form | dense | A-shape 1024:4096 | vertical-slash 1000:6096 | 3500:100 | block-sparse 100 |
/// | --- | --- | --- | --- | --- | --- |
/// | w8r1k64 | 209 | 195 | 179 | 134 | 156 |
/// | w4r1k32 | 191 | 188 | 172 | 134 | 184 |
///
/// What seems to hold them back, by the driver's code and by leaving parts out of a kernel of the same shape: barriers make all
/// subgroups of a group multiply at one time and exponentiate at another, so that the matrix units wait (23 of 51 ms
/// without staging, 20 without the softmax); a quarter of the instructions are copies of accumulators, which the branch
/// round the rescaling asks for; 255 registers leave one group of 256 on a processor.
const FORMS: &[(u32, u32, u32, bool)] = &[(8, 1, 64, false), (4, 1, 32, false)];

impl RowsVariant {
    fn all_forms() -> impl Iterator<Item = Self> {
        FORMS.iter().map(|&(subgroups, row_tiles, keys, queries_stay)| Self {
            subgroups,
            row_tiles,
            keys,
            queries_stay,
        })
    }

    /// The forms that a device can run for a head dim of the kernels, best guess first, if it lays fragments out as they
    /// expect ([`Wgpu::attention_kernels`] asks it).
    pub fn all(traits: &Traits, head_dim: u32) -> Vec<Self> {
        if !may_have_rows(traits) {
            return vec![];
        }
        Self::all_forms().filter(|variant| variant.fits(traits, head_dim)).collect()
    }

    /// Queries of a workgroup.
    pub fn rows(&self) -> u32 {
        self.subgroups * self.row_tiles * 16
    }

    /// Rows of 16-byte units in workgroup memory.
    fn tile_rows(&self) -> u32 {
        if self.queries_stay { self.rows() + 2 * self.keys } else { self.rows().max(2 * self.keys) }
    }

    fn fits(&self, traits: &Traits, head_dim: u32) -> bool {
        let copied = self.keys * head_dim / 8;
        head_dim.is_multiple_of(16)
            && copied.is_multiple_of(32 * self.subgroups)
            && self.tile_rows() * (2 * head_dim + 16) <= traits.workgroup_bytes
    }

    /// `skips`: a form of its own for skip-softmax, since its branch costs a tenth of the time where nothing is skipped
    /// (H100, dense 32K: 188 TFLOP/s, 208 without).
    pub(super) fn specialisation(&self, traits: &Traits, head_dim: u32, out: DType, skips: bool) -> Specialisation {
        Specialisation::new("attention_rows", traits)
            .cooperative()
            .constant("HEAD_DIM", head_dim)
            .constant("CM", 16)
            .constant("SG", 32)
            .constant("SUBGROUPS", self.subgroups)
            .constant("TEAM", 1)
            .constant("RM", self.row_tiles)
            .constant("SKIPS", u32::from(skips))
            .constant("BC", self.keys)
            .constant("BLOCKS", self.rows() / 64)
            .constant("ND", head_dim / 16)
            .constant("NB", self.keys / 16)
            .constant("WORDS", self.keys.div_ceil(32))
            .constant("STAGE", self.keys * head_dim / 8 / (32 * self.subgroups))
            .constant("Q_STAYS", u32::from(self.queries_stay))
            .constant("Q_REGISTERS", if self.queries_stay { 0 } else { head_dim / 16 })
            .constant("TILE_ROWS", self.tile_rows())
            .write(out, 4)
            .lanes(4)
            .with("invocation_subgroup")
            .with("coop_walk")
            .with("coop_stage_words")
            .alias("KvUnit", "vec4<u32>")
            .constant("KV_LANES", 8)
            .with("columns_direct")
            .by_rows()
            .matrices_of_words()
    }
}

/// Whether a device could lay fragments out as `coop_rows.wgsl` says: 16 x 16, and 32 lanes.
pub(super) fn may_have_rows(traits: &Traits) -> bool {
    traits.tier == Tier::Coop16 && traits.passthrough && (traits.subgroup_min, traits.subgroup_max) == (32, 32)
}

pub(super) fn layout(traits: &Traits) -> Specialisation {
    Specialisation::new("coop_layout", traits).cooperative().with("invocation_subgroup").by_rows().by_words()
}

/// Asks a device whether it does. Any failure is a no: other kernels do not depend on it.
pub(super) fn has_rows(b: &Wgpu) -> bool {
    if !may_have_rows(&b.context.traits) {
        return false;
    }
    let ask = || -> Result<Vec<f32>> {
        let bytes = 4 * 768;
        let buffer = b.create_buffer(bytes, false)?;
        let byte_len = bytes as u64;
        let binding = Binding { buffer: &buffer, byte_offset: 0, byte_len, dtype: DType::F32, lanes: 1 };
        b.dispatch(&layout(&b.context.traits), &(), &[binding], [1; 3])?;
        Ok(bytemuck::pod_collect_to_vec(&b.download_bytes(&buffer, 0..bytes)?))
    };
    ask().is_ok_and(|found| found.iter().map(|&place| place as usize).eq(expected_layout()))
}

/// What `coop_layout.wgsl` finds where fragments lie as `coop_rows.wgsl` and `coop_words.wgsl` say.
fn expected_layout() -> impl Iterator<Item = usize> {
    let elements = (0..32).flat_map(|lane| {
        let place = move |i: usize| (lane / 4 + i / 4 * 8) * 16 + lane % 4 * 2 + i % 2 + i / 2 % 2 * 8;
        (0..8).map(place)
    });
    let right = (0..256).map(|place| {
        let (row, column) = (place / 16, place % 16);
        8 * (column % 8 * 4 + row % 8 / 2) + 4 * (column / 8) + 2 * (row / 8) + row % 2
    });
    elements.chain(0..256).chain(right)
}

pub(super) fn specialisations(traits: &Traits, list: &mut Vec<Specialisation>) {
    if may_have_rows(traits) {
        list.push(layout(traits));
    }
    for head_dim in HEAD_DIMS {
        for variant in RowsVariant::all(traits, head_dim) {
            for skips in [false, true] {
                list.extend(traits.act_or_f32().map(|out| variant.specialisation(traits, head_dim, out, skips)));
            }
        }
    }
}
