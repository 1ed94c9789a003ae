//! Products with a weight matrix: decoding rows by `matvec`, the rest in tiles, on cooperative matrices (`matmul_coop` or,
//! where their layout is known, `matmul_frags`) where the device has them and the inner length allows, else in registers
//! (`matmul`).

use super::attention_rows::may_have_rows;
use super::buffer::{Binding, lanes};
use super::context::lock;
use super::launch::ExpandParams;
use super::link::Specialisation;
use super::queue::fold;
use super::tune::{Candidate, ProductSize, Subject, Trial, decoded, values};
use super::{Traits, Wgpu};
use crate::backend::params::MatmulParams;
use crate::backend::{Slice, SliceMut};
use crate::weights::random_blocks;
use crate::{DType, Error, Result};

/// Up to so many rows the weights are better read once a row: `matvec` is bound by memory, and a tile would be mostly empty.
const MATVEC_ROWS: u32 = 4;

/// Lanes of a `matvec` group.
fn matvec_workgroup(traits: &Traits) -> u32 {
    if traits.subgroups() { 256.max(traits.subgroup_max) } else { 64 }
}

/// Teams of a `matvec` group, four columns each.
fn matvec_teams(traits: &Traits) -> u32 {
    if traits.subgroups() { matvec_workgroup(traits) / traits.subgroup_max } else { 1 }
}

/// So many groups occupy a large device: an H100 has 132 processors, and 96 large tiles took 0.8 of the time of 192 halves.
const ENOUGH_GROUPS: u32 = 90;

/// From so many rows on packed weights are unpacked to f16 first, part by part: every tile of rows would do it again. On an
/// H100 4096 rows of Q4_0 take 40 % longer with unpacking in the tile, and writing the matrix once costs a tenth of that.
const EXPAND_ROWS: u32 = 1024;

/// Bytes of a part.
const EXPAND_BYTES: u64 = 64 << 20;

/// Columns of a tile of `matmul`.
const BLOCK_N: u32 = 128;

/// The shape of a `matmul_coop` group: each of its `subgroups` owns `fragments` matrices (rows x columns in both).
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tile {
    /// Rows x columns x inner length x stages.
    pub(super) name: &'static str,
    matrix: u32,
    fragments: [u32; 2],
    subgroups: [u32; 2],
    block_k: u32,
    stages: u32,
    units: Units,
}

/// How `matmul_coop` takes 8 elements of an operand from memory to workgroup memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Units {
    /// Two vectors of four.
    Vectors,
    /// A 2 x 4 matrix, then two vectors of four.
    Matrix,
    /// Four words, 16 bytes with one instruction everywhere: in SPIR-V alone can matrices be loaded from there.
    Words,
    /// Four words, in workgroup memory as lanes hold them of operands: `matmul_frags`.
    Frags,
}

macro_rules! tiles {
    ($($name:literal: $matrix:literal, $fragments:expr, $subgroups:expr, $k:literal, $stages:literal, $units:ident;)*) => {
        &[$(Tile {
            name: $name,
            matrix: $matrix,
            fragments: $fragments,
            subgroups: $subgroups,
            block_k: $k,
            stages: $stages,
            units: Units::$units,
        }),*]
    };
}

/// Shapes to choose from. The first of a matrix size that a device can hold is its default for large products.
const TILES: &[Tile] = tiles! {
    // name: matrix size, fragments, subgroups, inner length, stages, units
    // 4096 x 14336 x 4096 on an H100: 292, 290 TFLOP/s. With a longer step or two stages: 128x256x64x1 284, 128x256x32x2 263,
    // 128x128x64x1 221, 128x128x32x2 168.
    "128x128x32x1f": 16, [4, 4], [2, 2], 32, 1, Frags;
    "128x256x32x1f": 16, [4, 4], [2, 4], 32, 1, Frags;
    // The same: 274, 268, 264 and, of those without SPIR-V of our own, 163 TFLOP/s; the rest 57 to 193.
    "128x128x64x1u": 16, [4, 4], [2, 2], 64, 1, Words;
    "128x128x32x1u": 16, [4, 4], [2, 2], 32, 1, Words;
    "128x256x32x1u": 16, [4, 4], [2, 4], 32, 1, Words;
    // For few groups. 1024 x 1536 x 2048 and 64 x 4096 x 14336: 0.086, 0.242 ms and 0.092, 0.220 ms; 128x128x64x1u
    // 0.070, 0.266; the best of the rest 0.111, 0.282; registers 0.376, 1.731.
    "64x128x64x1u": 16, [2, 4], [2, 2], 64, 1, Words;
    "64x64x64x1u": 16, [2, 2], [2, 2], 64, 1, Words;
    "128x256x32x1": 16, [4, 4], [2, 4], 32, 1, Vectors;
    "128x256x16x2": 16, [4, 4], [2, 4], 16, 2, Vectors;
    "128x256x16x2w": 16, [4, 4], [2, 4], 16, 2, Matrix;
    "256x128x16x2": 16, [4, 4], [4, 2], 16, 2, Vectors;
    "256x128x16x2w": 16, [4, 4], [4, 2], 16, 2, Matrix;
    "128x256x32x1w": 16, [4, 4], [2, 4], 32, 1, Matrix;
    "256x128x32x1": 16, [4, 4], [4, 2], 32, 1, Vectors;
    "128x128x32x2": 16, [4, 4], [2, 2], 32, 2, Vectors;
    "128x128x32x2w": 16, [4, 4], [2, 2], 32, 2, Matrix;
    "128x128x32x1": 16, [4, 4], [2, 2], 32, 1, Vectors;
    "128x128x32x1w": 16, [4, 4], [2, 2], 32, 1, Matrix;
    "128x256x16x2u": 16, [4, 4], [2, 4], 16, 2, Words;
    "256x128x16x2u": 16, [4, 4], [4, 2], 16, 2, Words;
    "128x128x32x2u": 16, [4, 4], [2, 2], 32, 2, Words;
    "128x128x32x2us8": 16, [2, 4], [4, 2], 32, 2, Words;
    "128x128x32x2ut8": 16, [4, 2], [2, 4], 32, 2, Words;
    "128x128x64x1": 16, [4, 4], [2, 2], 64, 1, Vectors;
    "128x128x16x2": 16, [4, 4], [2, 2], 16, 2, Vectors;
    "128x128x32x2s8": 16, [2, 4], [4, 2], 32, 2, Vectors;
    "128x128x32x2t8": 16, [4, 2], [2, 4], 32, 2, Vectors;
    "128x128x64x1s8": 16, [2, 4], [4, 2], 64, 1, Vectors;
    "128x128x32x1s8": 16, [2, 4], [4, 2], 32, 1, Vectors;
    "128x128x32x1t8": 16, [4, 2], [2, 4], 32, 1, Vectors;
    "128x256x32x1s16": 16, [2, 4], [4, 4], 32, 1, Vectors;
    "128x256x16x2u8": 16, [2, 8], [4, 2], 16, 2, Vectors;
    "64x256x32x1": 16, [4, 4], [1, 4], 32, 1, Vectors;
    "64x128x32x2": 16, [4, 4], [1, 2], 32, 2, Vectors;
    "64x64x64x2": 16, [2, 2], [2, 2], 64, 2, Vectors;
    "64x64x16x2": 8, [4, 4], [2, 2], 16, 2, Vectors;
    "64x64x32x1": 8, [4, 4], [2, 2], 32, 1, Vectors;
    "64x64x16x2u": 8, [4, 4], [2, 2], 16, 2, Words;
};

/// The same for packed weights, which are unpacked as they come.
const PACKED_TILES: &[Tile] = tiles! {
    // 4096 x 14336 x 4096 in Q4_0 on an H100: 194, 179, 165, 118 TFLOP/s; the first two unpacked on the way to
    // workgroup memory instead: 137, 172.
    "256x128x32x1ue": 16, [4, 4], [4, 2], 32, 1, Words;
    "128x128x32x1ue": 16, [4, 4], [2, 2], 32, 1, Words;
    "128x256x32x1ue": 16, [4, 4], [2, 4], 32, 1, Words;
    "128x128x64x1ue": 16, [4, 4], [2, 2], 64, 1, Words;
    "128x128x32x1e": 16, [4, 4], [2, 2], 32, 1, Vectors;
    "128x256x32x1e": 16, [4, 4], [2, 4], 32, 1, Vectors;
    "64x64x16x2e": 8, [4, 4], [2, 2], 16, 2, Vectors;
    "64x64x32x1e": 8, [4, 4], [2, 2], 32, 1, Vectors;
    "64x64x16x2ue": 8, [4, 4], [2, 2], 16, 2, Words;
};

impl Tile {
    fn rows(&self) -> u32 {
        self.fragments[0] * self.matrix * self.subgroups[0]
    }

    fn columns(&self) -> u32 {
        self.fragments[1] * self.matrix * self.subgroups[1]
    }

    /// How often the lanes go to stage so many rows, 8 elements each; 0 where their number does not divide them.
    fn passes(&self, traits: &Traits, rows: u32) -> u32 {
        let (elements, at_once) =
            (rows * self.block_k, 8 * self.subgroups[0] * self.subgroups[1] * traits.subgroup_max);
        if elements.is_multiple_of(at_once) { elements / at_once } else { 0 }
    }

    /// Whether a device can run it: matrices of that size, room in workgroup memory, lanes that share the staging evenly,
    /// and not so many elements a lane that its registers overflow.
    fn fits(&self, traits: &Traits) -> bool {
        let subgroups = self.subgroups[0] * self.subgroups[1];
        if self.units == Units::Frags {
            let staged = 2 * self.stages * (self.rows() + self.columns()) * self.block_k;
            return may_have_rows(traits) && staged <= traits.workgroup_bytes;
        }
        let staged = 2 * self.stages * (self.rows() + self.columns()) * (self.block_k + 8);
        let spread = 4 * subgroups * self.matrix * self.matrix;
        let passes = [self.rows(), self.columns()].map(|rows| self.passes(traits, rows));
        self.matrix == traits.matrix()
            && (traits.passthrough || self.units != Units::Words)
            && staged + spread <= traits.workgroup_bytes
            && passes.iter().all(|n| (1..=8).contains(n))
    }

    /// The tiles that a device can run with matrices of a type.
    pub(super) fn all(traits: &Traits, weights: DType) -> impl Iterator<Item = &'static Tile> + use<> {
        let traits = *traits;
        let tiles: &[Tile] = match weights {
            DType::F16 => TILES,
            _ if weights.is_quantized() => PACKED_TILES,
            _ => &[],
        };
        tiles.iter().filter(move |tile| tile.fits(&traits))
    }
}

impl Tile {
    /// Those that this device can run.
    pub(super) fn offered(b: &Wgpu, weights: DType) -> impl Iterator<Item = &'static Tile> + use<'_> {
        Self::all(&b.context.traits, weights).filter(|tile| tile.units != Units::Frags || b.has_rows())
    }
}

/// The tile named by `MINFERENCE_MATMUL_TILE`, for comparing shapes in whole programs.
pub(super) fn tile_from_env(traits: &Traits) -> Result<Option<&'static str>> {
    let Ok(name) = std::env::var("MINFERENCE_MATMUL_TILE") else { return Ok(None) };
    let all = || [DType::F16, DType::Q4K].into_iter().flat_map(|weights| Tile::all(traits, weights));
    match all().find(|tile| tile.name == name) {
        Some(tile) => Ok(Some(tile.name)),
        None => {
            let names: Vec<_> = all().map(|tile| tile.name).collect();
            Err(Error::invalid(format!("MINFERENCE_MATMUL_TILE: expected one of {names:?}, got {name}")))
        }
    }
}

/// What decides the form of a product, besides the device.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Operands {
    w: DType,
    x_lanes: u64,
    w_lanes: u64,
    bias: bool,
    out: DType,
}

impl Operands {
    /// What all product kernels define alike.
    fn link(&self, kernel: &'static str, traits: &Traits) -> Specialisation {
        let input = if self.x_lanes == 4 { "input_vec4" } else { "input_scalar" };
        Specialisation::new(kernel, traits)
            .read("In", traits.activation(), self.x_lanes)
            .with(input)
            .weight(self.w, self.w_lanes)
            .constant("BIAS", u32::from(self.bias))
            .write(self.out, 1)
            .lanes(1)
            .with("matmul_out")
    }

    fn matvec(&self, traits: &Traits) -> Specialisation {
        let team = if traits.subgroups() { "team_subgroup" } else { "team_workgroup" };
        let invocation = if traits.subgroups() { "invocation_subgroup" } else { "invocation" };
        self.link("matvec", traits)
            .constant("WORKGROUP", matvec_workgroup(traits))
            .constant("TEAMS", matvec_teams(traits))
            .with(team)
            .with(invocation)
    }

    /// On cooperative matrices, storing `lanes` columns at a time.
    fn cooperative(&self, traits: &Traits, tile: &Tile, lanes: u64) -> Specialisation {
        let frags = tile.units == Units::Frags;
        let name = if frags { "matmul_frags" } else { "matmul_coop" };
        let kernel = Specialisation::new(name, traits).cooperative().constant("MATRIX", tile.matrix);
        let kernel = match tile.units {
            Units::Vectors => kernel.read("In", DType::F16, 4).with("input8_vec4"),
            Units::Matrix => kernel.read("In", DType::F16, 8).with("input8_wide"),
            Units::Words => kernel.alias("In", "vec4<u32>").with("input8_words").matrices_of_words(),
            Units::Frags => kernel.alias("In", "vec4<u32>").with("input8_words").by_rows().by_words(),
        };
        let kernel = match kernel.clone().packed(self.w) {
            Some(kernel) => {
                kernel.with("unpack").with(if tile.units == Units::Words { "eight_words" } else { "eight_f16" })
            }
            None => match tile.units {
                Units::Vectors => kernel.read("Weight", DType::F16, 4).with("weight8_vec4"),
                Units::Matrix => kernel.read("Weight", DType::F16, 8).with("weight8_wide"),
                Units::Words | Units::Frags => kernel.alias("Weight", "vec4<u32>").with("weight8_words"),
            }
            .with("unpack_none"),
        };
        let stage = match tile.units {
            Units::Frags => None,
            Units::Words => Some("stage_words"),
            // Metal's matrix loads take pointers to scalars; the 8 x 8 tier is Metal's.
            _ if tile.matrix == 8 => Some("stage_scalar"),
            _ => Some("stage_vec4"),
        };
        let kernel = stage.into_iter().fold(kernel, Specialisation::with);
        kernel
            .constant("SUBGROUP", traits.subgroup_max)
            .constant("FRAGMENTS_M", tile.fragments[0])
            .constant("FRAGMENTS_N", tile.fragments[1])
            .constant("SUBGROUPS_M", tile.subgroups[0])
            .constant("SUBGROUPS_N", tile.subgroups[1])
            .constant("BLOCK_K", tile.block_k)
            .constant("STAGES", tile.stages)
            .constant("X_PASSES", tile.passes(traits, tile.rows()) / if frags { 2 } else { 1 })
            .constant("W_PASSES", tile.passes(traits, tile.columns()))
            .constant("BIAS", u32::from(self.bias))
            .write(self.out, lanes)
            .lanes(lanes)
            .with(if lanes == 4 { "matmul_out4_vec4" } else { "matmul_out4_scalar" })
            .with("tile_order")
            .with("invocation_subgroup")
    }

    /// The fragment that reads four weights before they are turned into values, where that can be told apart.
    fn raw_weights(&self, traits: &Traits) -> &'static str {
        match (self.w, self.w_lanes) {
            (DType::F16, 4) if !traits.f16() => "raw_w_f16_packed",
            (DType::F16 | DType::F32, 4) => "raw_w_stored",
            _ => "raw_w_values",
        }
    }

    /// `rows` of 4 or 8 per lane: tiles of 64 or 128 rows.
    fn tiled(&self, traits: &Traits, rows: u32) -> Specialisation {
        // Staged as f16 where one is stored so and the other is no more exact: half the traffic of workgroup memory.
        let half = traits.f16() && self.w != DType::F32;
        // Vectors of k in a row of the tiles, as many as there is room for besides the one that pads it.
        let row_bytes = (16 * rows + BLOCK_N) * if half { 8 } else { 16 };
        let quads = if 5 * row_bytes <= traits.workgroup_bytes { 4 } else { 2 };
        self.link("matmul", traits)
            .with(if self.x_lanes == 4 { "raw_x_stored" } else { "raw_x_values" })
            .with(self.raw_weights(traits))
            .alias("Stage", if half { "vec4<f16>" } else { "vec4<f32>" })
            .constant("ROWS", rows)
            .constant("QUADS", quads)
            .with("tile_order")
            .with("invocation")
    }
}

pub(super) fn specialisations(traits: &Traits, list: &mut Vec<Specialisation>) {
    for w in Wgpu::WEIGHTS {
        if w.is_quantized() && traits.f16() {
            list.push(expansion(traits, *w));
        }
        for out in traits.act_or_f32() {
            for (x_lanes, w_lanes) in [(1, 1), (1, 4), (4, 1), (4, 4)] {
                if w.is_quantized() && w_lanes == 4 {
                    continue;
                }
                for bias in [false, true] {
                    let operands = Operands { w: *w, x_lanes, w_lanes, bias, out };
                    list.push(operands.matvec(traits));
                    list.extend([4, 8].map(|rows| operands.tiled(traits, rows)));
                }
            }
            for bias in [false, true] {
                let operands = Operands { w: *w, x_lanes: 4, w_lanes: 4, bias, out };
                for tile in Tile::all(traits, *w) {
                    list.extend([1, 4].map(|lanes| operands.cooperative(traits, tile, lanes)));
                }
            }
        }
    }
}

pub(super) fn matmul(
    b: &Wgpu,
    p: &MatmulParams,
    x: Slice<Wgpu>,
    w: Slice<Wgpu>,
    bias: Option<Slice<Wgpu>>,
    out: SliceMut<Wgpu>,
) -> Result<()> {
    let (x, w, out) = (Binding::from(x), Binding::from(w), Binding::from(out));
    let bias = bias.map(Binding::from);
    Wgpu::check_packed("matmul", &w)?;
    let form = product_form(b, w.dtype, p, true);
    let packed = w.dtype.is_quantized() && p.m >= EXPAND_ROWS && b.context.traits.f16();
    if packed && lock(&b.matmul_tile).is_none() && form.as_deref().is_none_or(|form| form == EXPAND) {
        return expanded(b, p, [x, w], bias, out);
    }
    bands(b, p, [x, w], bias, out, form.as_deref())
}

/// The form's name for unpacking weights first.
const EXPAND: &str = "expand";
/// Names of tiles in registers, by rows.
const REGISTERS: [(&str, u32); 2] = [("registers64", 4), ("registers128", 8)];

impl ProductSize {
    fn of(p: &MatmulParams) -> Self {
        match p.m.div_ceil(128) * p.n.div_ceil(128) {
            _ if p.m <= 128 => Self::FewRows,
            groups if groups < ENOUGH_GROUPS => Self::Small,
            _ => Self::Large,
        }
    }
}

/// Multiplications of a product of each [`ProductSize`] from which on it pays to try forms.
const WORTH_TRYING: [u64; 3] = [1 << 28, 1 << 30, 1 << 31];

/// The form tried for such products, if one was.
fn product_form(b: &Wgpu, weights: DType, p: &MatmulParams, try_now: bool) -> Option<String> {
    if p.m <= MATVEC_ROWS || lock(&b.matmul_tile).is_some() {
        return None;
    }
    let size = ProductSize::of(p);
    let subject = Subject::Product { weights, size };
    let elements = u64::from(p.m) * u64::from(p.n) * u64::from(p.k);
    if try_now && elements >= WORTH_TRYING[size as usize] {
        return tried(b, subject);
    }
    b.context.tuner.chosen(subject)
}

fn tried(b: &Wgpu, subject: Subject) -> Option<String> {
    let Subject::Product { weights, size } = subject else { return None };
    b.form_of(subject, || candidates(b, weights, size), |b, scale| trial(b, weights, size, scale))
}

/// The forms worth trying, the one that runs otherwise first.
fn candidates(b: &Wgpu, weights: DType, size: ProductSize) -> Vec<Candidate> {
    let traits = &b.context.traits;
    let out = DType::F32;
    let w_lanes = if weights.is_quantized() { 1 } else { 4 };
    let operands = Operands { w: weights, x_lanes: 4, w_lanes, bias: false, out };
    let registers = |name: &str| {
        let rows = REGISTERS.iter().find(|(known, _)| *known == name).map_or(8, |(_, rows)| *rows);
        Candidate { name: name.to_owned(), specialisations: vec![operands.tiled(traits, rows)] }
    };
    let cooperative = |tile: &Tile| Candidate {
        name: tile.name.to_owned(),
        specialisations: vec![operands.cooperative(traits, tile, 4)],
    };
    let all = || Tile::offered(b, weights);
    if all().next().is_none() {
        let mut list: Vec<_> = REGISTERS.iter().map(|(name, _)| registers(name)).collect();
        if size != ProductSize::FewRows {
            list.reverse();
            if weights.is_quantized() && traits.f16() && size == ProductSize::Large {
                let specialisations = vec![expansion(traits, weights)];
                list.insert(0, Candidate { name: EXPAND.to_owned(), specialisations });
            }
        }
        return list;
    }
    if size != ProductSize::Large {
        // The smallest, one of which runs otherwise, and the first of the large ones.
        let mut tiles: Vec<_> = all().collect();
        let first = tiles.first().copied();
        tiles.sort_by_key(|tile| tile.rows() * tile.columns());
        tiles.truncate(4);
        tiles.extend(first.filter(|first| !tiles.contains(first)));
        return tiles.into_iter().map(cooperative).collect();
    }
    let expand = weights
        .is_quantized()
        .then(|| Candidate { name: EXPAND.to_owned(), specialisations: vec![expansion(traits, weights)] });
    let most = if weights.is_quantized() { 3 } else { 4 };
    expand.into_iter().chain(all().take(most).map(cooperative)).collect()
}

/// A product of about the size that a layer has.
struct ProductTrial {
    p: MatmulParams,
    weights: DType,
    /// x, w, out.
    buffers: [super::Buffer; 3],
}

impl Trial for ProductTrial {
    fn launch(&self, b: &Wgpu, form: &str) -> Result<()> {
        let binding = |i: usize, dtype| {
            let buffer: &super::Buffer = &self.buffers[i];
            Binding { buffer, byte_offset: 0, byte_len: buffer.len, dtype, lanes: 1 }
        };
        let operands = [binding(0, b.context.traits.activation()), binding(1, self.weights)];
        match form == EXPAND {
            true => expanded(b, &self.p, operands, None, binding(2, DType::F32)),
            false => bands(b, &self.p, operands, None, binding(2, DType::F32), Some(form)),
        }
    }

    fn results(&self, b: &Wgpu) -> Result<Vec<f32>> {
        let out = &self.buffers[2];
        Ok(decoded(DType::F32, &b.download_bytes(out, 0..out.len.min(4 << 20) as usize)?))
    }
}

fn trial(b: &Wgpu, weights: DType, size: ProductSize, scale: usize) -> Result<Box<dyn Trial>> {
    let [m, n, k] = match size {
        ProductSize::FewRows => [[64, 512, 512], [64, 2048, 2048], [64, 4096, 4096], [64, 4096, 14336]][scale],
        ProductSize::Small => [[256, 512, 512], [512, 1024, 1024], [1024, 1536, 2048], [1024, 1536, 8960]][scale],
        ProductSize::Large => [[256, 512, 512], [512, 1536, 1536], [2048, 4096, 4096], [4096, 8192, 4096]][scale],
    };
    let w = match weights.is_quantized() {
        // 16 rows over and over.
        true => random_blocks(weights, 16 * k, 2, 1.0 / (k as f32).sqrt())?.repeat(n / 16),
        false => values(weights, n * k, 2),
    };
    let buffers = [
        b.upload_unaccounted(&values(b.context.traits.activation(), m * k, 1))?,
        b.upload_unaccounted(&w)?,
        b.upload_unaccounted(&vec![0; 4 * m * n])?,
    ];
    let [m, n, k] = [m, n, k].map(|x| x as u32);
    let p = MatmulParams { m, n, k, x_stride: k, out_stride: n, accumulate: 0 };
    Ok(Box::new(ProductTrial { p, weights, buffers }))
}

/// What runs products here, for people: those with f16 weights, tried now, and what else was tried.
pub(super) fn choices(b: &Wgpu) -> String {
    if let Some(tile) = *lock(&b.matmul_tile) {
        return tile.to_owned();
    }
    let subject = Subject::Product { weights: DType::F16, size: ProductSize::Large };
    let first = Tile::offered(b, DType::F16).next().map_or(REGISTERS[1].0, |tile| tile.name);
    let first = tried(b, subject).unwrap_or(first.to_owned());
    let others = b.context.tuner.choices().into_iter().filter_map(|(what, choice)| {
        let what = what.strip_prefix("product-").filter(|what| *what != "f16-large")?;
        Some(format!(", {what} {}", choice.form))
    });
    format!("f16-large {first}{}", others.collect::<String>())
}

/// A product in parts whose operands can be bound whole.
fn bands(
    b: &Wgpu,
    p: &MatmulParams,
    [x, w]: [Binding; 2],
    bias: Option<Binding>,
    out: Binding,
    form: Option<&str>,
) -> Result<()> {
    let x_row = u64::from(p.x_stride) * x.element_bytes();
    let w_row = w.dtype.bytes(p.k as usize) as u64;
    let out_row = u64::from(p.out_stride) * out.element_bytes();
    let operands = Operands {
        w: w.dtype,
        x_lanes: lanes(&[x], &[p.k, p.x_stride]),
        w_lanes: if w.dtype.is_quantized() { 1 } else { lanes(&[w], &[p.k]) },
        bias: bias.is_some(),
        out: out.dtype,
    };
    for (column, n) in b.row_bands(p.n, w_row) {
        let skip = column * out.element_bytes();
        let w = w.rows(column, n, w_row);
        let bias = bias.map(|bias| bias.part(4 * column, 4 * n));
        let out = out.part(skip, out.byte_len - skip);
        for (row, m) in b.row_bands(p.m, x_row.max(out_row)) {
            let band = MatmulParams { m: m as u32, n: n as u32, ..*p };
            let bindings = [x.rows(row, m, x_row), w, bias.unwrap_or(b.placeholder()), out.rows(row, m, out_row)];
            launch(b, &band, &operands, bindings, form)?;
        }
    }
    Ok(())
}

fn expansion(traits: &Traits, w: DType) -> Specialisation {
    Specialisation::new("expand", traits).constant("WORKGROUP", 256).weight(w, 1).with("invocation")
}

/// A product with packed weights, some columns at a time unpacked before it.
fn expanded(b: &Wgpu, p: &MatmulParams, [x, w]: [Binding; 2], bias: Option<Binding>, out: Binding) -> Result<()> {
    let (w_row, f16_row) = (w.dtype.bytes(p.k as usize) as u64, 2 * u64::from(p.k));
    let most = (EXPAND_BYTES.min(b.band_bytes()) / f16_row).max(1);
    let mut scratch = lock(&b.expanded);
    let bytes = most.min(u64::from(p.n)) * f16_row;
    if scratch.as_ref().is_none_or(|buffer| buffer.len < bytes) {
        *scratch = None;
        *scratch = Some(b.create_buffer(bytes as usize, false)?);
    }
    let Some(buffer) = &*scratch else { return Ok(()) };
    let specialisation = expansion(&b.context.traits, w.dtype);
    let form = product_form(b, DType::F16, p, false);
    for column in (0..u64::from(p.n)).step_by(most as usize) {
        let n = most.min(u64::from(p.n) - column);
        let f16 = Binding { buffer, byte_offset: 0, byte_len: n * f16_row, dtype: DType::F16, lanes: 4 };
        let quads = n * u64::from(p.k) / 4;
        let numbers = ExpandParams { quads: quads as u32 };
        b.dispatch(&specialisation, &numbers, &[w.rows(column, n, w_row), f16], fold(quads.div_ceil(256)))?;
        let skip = column * out.element_bytes();
        let bias = bias.map(|bias| bias.part(4 * column, 4 * n));
        let part = MatmulParams { n: n as u32, ..*p };
        let out = out.part(skip, out.byte_len - skip);
        bands(b, &part, [x, f16.with_lanes(1)], bias, out, form.as_deref())?;
    }
    Ok(())
}

/// One product whose operands can be bound whole.
fn launch(b: &Wgpu, p: &MatmulParams, operands: &Operands, bindings: [Binding; 4], form: Option<&str>) -> Result<()> {
    let traits = &b.context.traits;
    if p.m > MATVEC_ROWS
        && let Some(tile) = cooperative_tile(b, p, operands, &bindings, form)
    {
        let [x, w, bias, out] = bindings;
        let out_lanes = lanes(&[out], &[p.n, p.out_stride]);
        let operand_lanes = if tile.units == Units::Vectors { 4 } else { 8 };
        let w_lanes = if w.dtype.is_quantized() { 1 } else { operand_lanes };
        let bindings = [x.with_lanes(operand_lanes), w.with_lanes(w_lanes), bias, out.with_lanes(out_lanes)];
        let tiles = u64::from(p.n.div_ceil(tile.columns())) * u64::from(p.m.div_ceil(tile.rows()));
        return b.dispatch(&operands.cooperative(traits, tile, out_lanes), p, &bindings, fold(tiles));
    }
    let [x, w, bias, out] = bindings;
    let bindings = [x.with_lanes(operands.x_lanes), w.with_lanes(operands.w_lanes), bias, out];
    if p.m <= MATVEC_ROWS {
        let columns = 4 * matvec_teams(traits);
        let groups = u64::from(p.n.div_ceil(columns)) * u64::from(p.m);
        return b.dispatch(&operands.matvec(traits), p, &bindings, fold(groups));
    }
    let told = REGISTERS.iter().find(|(name, _)| Some(*name) == form);
    let rows = told.map_or(if p.m <= 64 { 4 } else { 8 }, |(_, rows)| *rows);
    let tiles = u64::from(p.n.div_ceil(BLOCK_N)) * u64::from(p.m.div_ceil(16 * rows));
    b.dispatch(&operands.tiled(traits, rows), p, &bindings, fold(tiles))
}

/// The tile for a product on cooperative matrices, where the device has them and the operands allow it.
fn cooperative_tile(
    b: &Wgpu,
    p: &MatmulParams,
    operands: &Operands,
    bindings: &[Binding; 4],
    form: Option<&str>,
) -> Option<&'static Tile> {
    let packed = operands.w.is_quantized();
    if REGISTERS.iter().any(|(name, _)| Some(*name) == form) {
        return None;
    }
    let aligned = |operand: &Binding| operand.start().is_multiple_of(16);
    if !aligned(&bindings[0]) || !(packed || aligned(&bindings[1])) || !p.x_stride.is_multiple_of(8) {
        return None;
    }
    let usable = |tile: &&Tile| p.k.is_multiple_of(tile.block_k);
    let all = || Tile::offered(b, operands.w);
    if let Some(name) = *lock(&b.matmul_tile)
        && all().any(|tile| tile.name == name)
    {
        return all().filter(usable).find(|tile| tile.name == name);
    }
    // The first shape that gives every processor of a large device something to do, or the smallest one.
    let groups = |tile: &&Tile| p.m.div_ceil(tile.rows()) * p.n.div_ceil(tile.columns());
    let tiles = || all().filter(usable);
    let told = tiles().find(|tile| Some(tile.name) == form);
    if let Some(tile) = told.filter(|tile| ProductSize::of(p) != ProductSize::Large || groups(tile) >= ENOUGH_GROUPS) {
        return Some(tile);
    }
    tiles()
        .find(|tile| groups(tile) >= ENOUGH_GROUPS)
        .or_else(|| tiles().min_by_key(|tile| tile.rows() * tile.columns()))
}
