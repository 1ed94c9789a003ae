//! A sparse index in main memory: CSR over heads and row blocks, the layout of `minference attend --index-out`.

use super::{IndexLayout, SparseIndex, causal_pairs};
use crate::backend::Backend;
use crate::backend::params::BLOCK;
use crate::tensor::Tensor;
use crate::tensor_file::{TensorFile, TensorOut, write_tensors};
use crate::{DType, Error, Result};
use safetensors::Dtype;
use std::ops::Range;
use std::path::Path;

/// The index of all heads of one layer in main memory. What its parts mean is said at [`SparseIndex`]; row `head * R + r`
/// of the two CSR lists is row block `r` of `head`, `R = ceil(q_len / 64)`.
#[derive(Clone, Debug, PartialEq)]
pub struct HostIndex {
    /// Query heads.
    pub n_heads: usize,
    /// Queries.
    pub q_len: usize,
    /// Keys.
    pub kv_len: usize,
    /// Key position of the first query.
    pub q_start: usize,
    /// `[H * R + 1]`: where each row's ranges begin.
    pub range_ptr: Vec<i64>,
    /// Start and end (exclusive), ascending and disjoint within a row; an end may pass the row block and `kv_len`.
    pub ranges: Vec<[i32; 2]>,
    /// `[H * R + 1]`: where each row's columns begin.
    pub column_ptr: Vec<i64>,
    /// Single keys, ascending within a row.
    pub columns: Vec<i32>,
    /// `[H]`: `n_init`, `n_local` of an element-exact head, -1 twice where there is none.
    pub window: Vec<[i32; 2]>,
}

/// What one row block of one head computes.
#[derive(Clone, Debug)]
pub struct IndexRow<'a> {
    /// Key positions of the block's queries.
    pub queries: Range<usize>,
    /// Start and end of each range.
    pub ranges: &'a [[i32; 2]],
    /// Single keys.
    pub columns: &'a [i32],
    /// `n_init`, `n_local` of an element-exact head.
    pub window: Option<[usize; 2]>,
}

impl IndexRow<'_> {
    /// The keys that the query at key position `query` computes, as ascending, disjoint intervals.
    pub fn keys(&self, query: usize) -> Vec<Range<usize>> {
        let ranges = self.ranges.iter().map(|&[start, end]| start as usize..(end as usize).min(query + 1));
        let columns = self.columns.iter().map(|&c| c as usize..c as usize + 1);
        let mut keys: Vec<Range<usize>> = ranges.chain(columns).collect();
        if let Some([n_init, n_local]) = self.window {
            // Outside the window lie the keys from n_init to the first local one.
            let hole = n_init..(query + 1).saturating_sub(n_local);
            if !hole.is_empty() {
                keys = keys
                    .into_iter()
                    .flat_map(|k| [k.start..k.end.min(hole.start), k.start.max(hole.end)..k.end])
                    .collect();
            }
        }
        keys.retain(|k| !k.is_empty());
        keys.sort_unstable_by_key(|k| k.start);
        keys
    }

    /// Pairs computed, clipped to `j <= i < N`.
    pub fn pairs(&self) -> u64 {
        let n = self.queries.len() as u64;
        if self.window.is_some() {
            return self.queries.clone().flat_map(|q| self.keys(q)).map(|k| k.len() as u64).sum();
        }
        let ranges = self.ranges.iter().map(|&[start, end]| {
            let (start, end) = (start as usize, (end as usize).min(self.queries.end));
            // Every query sees keys up to the first query; each later one sees one more, up to the range's end.
            let seen_by_all = end.min(self.queries.start + 1).saturating_sub(start) as u64 * n;
            let first_partial = start.max(self.queries.start + 1);
            let partial = (first_partial..end).map(|key| (self.queries.end - key) as u64).sum::<u64>();
            seen_by_all + partial
        });
        ranges.sum::<u64>() + self.columns.len() as u64 * n
    }
}

impl HostIndex {
    /// No rows yet, all heads without a window: to be filled row by row.
    pub fn empty(n_heads: usize, q_len: usize, kv_len: usize, q_start: usize) -> Self {
        Self {
            n_heads,
            q_len,
            kv_len,
            q_start,
            range_ptr: vec![0],
            ranges: Vec::new(),
            column_ptr: vec![0],
            columns: Vec::new(),
            window: vec![[-1, -1]; n_heads],
        }
    }

    /// Blocks of 64 queries, the last one possibly short.
    pub fn row_blocks(&self) -> usize {
        self.q_len.div_ceil(BLOCK)
    }

    /// One row block. Panics where there is no such row, as slices do.
    pub fn row(&self, head: usize, block: usize) -> IndexRow<'_> {
        let row = head * self.row_blocks() + block;
        let part = |ptr: &[i64]| ptr[row] as usize..ptr[row + 1] as usize;
        let first = block * BLOCK;
        let [n_init, n_local] = self.window[head];
        IndexRow {
            queries: self.q_start + first..self.q_start + self.q_len.min(first + BLOCK),
            ranges: &self.ranges[part(&self.range_ptr)],
            columns: &self.columns[part(&self.column_ptr)],
            window: (n_init >= 0).then_some([n_init as usize, n_local as usize]),
        }
    }

    fn rows(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let blocks = self.row_blocks();
        (0..self.n_heads * blocks).map(move |row| (row / blocks, row % blocks))
    }

    /// Pairs that all heads compute, clipped to `j <= i < N`.
    pub fn pairs(&self) -> u64 {
        self.rows().map(|(head, block)| self.row(head, block).pairs()).sum()
    }

    /// Computed pairs over causal pairs, over all heads.
    pub fn density(&self) -> f64 {
        self.pairs() as f64 / (self.n_heads as u64 * causal_pairs(self.q_len, self.q_start)) as f64
    }

    /// Which pairs a head computes: `[q_len, kv_len]`, row-major. For pictures and tests: one byte a pair.
    pub fn to_mask(&self, head: usize) -> Vec<bool> {
        let mut mask = vec![false; self.q_len * self.kv_len];
        for block in 0..self.row_blocks() {
            let row = self.row(head, block);
            for query in row.queries.clone() {
                let line = &mut mask[(query - self.q_start) * self.kv_len..][..self.kv_len];
                row.keys(query).into_iter().for_each(|keys| line[keys].fill(true));
            }
        }
        mask
    }

    /// For each head, which part of the pairs of `wanted` this index computes; 1 where nothing is wanted. The two are of
    /// one shape.
    ///
    /// # Errors
    /// [`Error::Shape`] where the two are not of one shape.
    pub fn coverage(&self, wanted: &Self) -> Result<Vec<f64>> {
        let shape = |i: &Self| [i.n_heads, i.q_len, i.kv_len, i.q_start];
        if shape(self) != shape(wanted) {
            return Err(Error::Shape {
                op: "coverage",
                what: "wanted",
                expected: format!("[heads, q_len, kv_len, q_start] = {:?}", shape(self)),
                got: format!("{:?}", shape(wanted)),
            });
        }
        let head_coverage = |head: usize| {
            let (mut both, mut all) = (0, 0);
            for block in 0..self.row_blocks() {
                let (mine, theirs) = (self.row(head, block), wanted.row(head, block));
                for query in mine.queries.clone() {
                    let theirs = theirs.keys(query);
                    all += theirs.iter().map(ExactSizeIterator::len).sum::<usize>();
                    both += common(&mine.keys(query), &theirs);
                }
            }
            if all == 0 { 1. } else { both as f64 / all as f64 }
        };
        Ok((0..self.n_heads).map(head_coverage).collect())
    }

    /// The heads of `other` after those of `self`: head groups of one layer, computed one after another.
    pub fn append_heads(&mut self, other: &Self) {
        debug_assert_eq!([self.q_len, self.kv_len, self.q_start], [other.q_len, other.kv_len, other.q_start]);
        let (ranges, columns) = (self.ranges.len() as i64, self.columns.len() as i64);
        self.n_heads += other.n_heads;
        self.range_ptr.extend(other.range_ptr[1..].iter().map(|p| p + ranges));
        self.ranges.extend_from_slice(&other.ranges);
        self.column_ptr.extend(other.column_ptr[1..].iter().map(|p| p + columns));
        self.columns.extend_from_slice(&other.columns);
        self.window.extend_from_slice(&other.window);
    }

    /// Everything that kernels rely on: lists of the right length; ranges and columns in range, ascending and disjoint;
    /// no key of a row twice; columns before the row block's first query; every query with at least one key.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the head, the row block and what is wrong there.
    pub fn validate(&self) -> Result<()> {
        if self.n_heads == 0 || self.q_len == 0 || self.q_start + self.q_len > self.kv_len {
            return Err(Error::invalid(format!(
                "index: {} heads, {} queries from {} on, {} keys: expected at least one head and query, and keys up to \
                 the last query",
                self.n_heads, self.q_len, self.q_start, self.kv_len
            )));
        }
        let rows = self.n_heads * self.row_blocks();
        check_ptr("range_ptr", &self.range_ptr, rows, self.ranges.len())?;
        check_ptr("column_ptr", &self.column_ptr, rows, self.columns.len())?;
        if self.window.len() != self.n_heads {
            let (heads, got) = (self.n_heads, self.window.len());
            return Err(Error::invalid(format!("index: window: expected {heads} heads, got {got}")));
        }
        for (head, &[n_init, n_local]) in self.window.iter().enumerate() {
            if [n_init, n_local] != [-1, -1] && (n_init < 0 || n_local < 1) {
                return Err(Error::invalid(format!(
                    "index: window of head {head}: expected n_init >= 0 and n_local >= 1, or -1 twice, got [{n_init}, {n_local}]"
                )));
            }
        }
        self.rows().try_for_each(|(head, block)| {
            let row = self.row(head, block);
            self.check_row(&row)
                .map_err(|what| Error::invalid(format!("index: head {head}, row block {block}: {what}")))
        })
    }

    fn check_row(&self, row: &IndexRow) -> Result<(), String> {
        // The official rule lengthens a run by whole blocks from the padded end of the last row block.
        let most = self.kv_len.next_multiple_of(BLOCK) + BLOCK;
        let mut previous = 0;
        for &[start, end] in row.ranges {
            if start < previous || end <= start || end as usize > most || start as usize >= row.queries.end {
                return Err(format!(
                    "range [{start}, {end}): expected a start from {previous} to {} and an end after it, at most {most}",
                    row.queries.end - 1
                ));
            }
            previous = end;
        }
        let mut ranges = row.ranges.iter().peekable();
        let mut previous = -1;
        for &column in row.columns {
            if column <= previous || column as usize >= row.queries.start {
                let first = row.queries.start;
                return Err(format!("column {column}: expected after {previous} and before the first query, {first}"));
            }
            previous = column;
            while ranges.next_if(|range| range[1] <= column).is_some() {}
            if let Some(range) = ranges.peek().filter(|range| range[0] <= column) {
                return Err(format!("column {column} lies in the range [{}, {})", range[0], range[1]));
            }
        }
        // Without a window a later query sees all that an earlier one does.
        let last = if row.window.is_some() { row.queries.end } else { row.queries.start + 1 };
        match (row.queries.start..last).find(|&query| row.keys(query).is_empty()) {
            Some(query) => Err(format!("query {query} has no key")),
            None => Ok(()),
        }
    }

    /// Brings the index to a device. The index is validated first: kernels do not check it again.
    ///
    /// # Errors
    /// As [`HostIndex::validate`]; [`Error::OutOfMemory`].
    pub fn upload<B: Backend>(&self, backend: &B) -> Result<SparseIndex<B>> {
        self.validate()?;
        let (heads, blocks) = (self.n_heads, self.row_blocks());
        let head_columns: Vec<Vec<u32>> = (0..heads).map(|head| self.columns_of(head)).collect();
        let tiles = head_columns.iter().map(|c| c.len().div_ceil(BLOCK)).max().unwrap_or(0);
        let layout = IndexLayout {
            n_heads: heads,
            q_len: self.q_len,
            kv_len: self.kv_len,
            q_start: self.q_start,
            column_tiles: tiles,
            range_budget: self.ranges.len(),
        };
        let stored_tiles = tiles.max(1);
        let mut columns = vec![u32::MAX; heads * stored_tiles * BLOCK];
        let mut keep = vec![0u32; heads * blocks * stored_tiles * 2];
        for (head, union) in head_columns.iter().enumerate() {
            columns[head * stored_tiles * BLOCK..][..union.len()].copy_from_slice(union);
            for block in 0..blocks {
                let words = &mut keep[(head * blocks + block) * stored_tiles * 2..][..stored_tiles * 2];
                let mut slot = 0;
                for &column in self.row(head, block).columns {
                    slot += union[slot..].partition_point(|&c| c < column as u32);
                    words[slot / 32] |= 1 << (slot % 32);
                }
            }
        }
        let row_ranges: Vec<u32> =
            self.range_ptr.windows(2).flat_map(|p| [p[0] as u32, (p[1] - p[0]) as u32]).collect();
        let mut ranges: Vec<u32> = self.ranges.iter().flat_map(|r| r.map(|key| key as u32)).collect();
        ranges.resize(2 * (layout.range_budget + heads * blocks), 0);
        let window: Vec<u32> = self.window.iter().flat_map(|w| w.map(|n| n as u32)).collect();
        // At most 64 queries of 2^24 keys each.
        let pairs: Vec<u32> = self.rows().map(|(head, block)| self.row(head, block).pairs() as u32).collect();
        Ok(SparseIndex {
            layout,
            row_ranges: Tensor::from_slice(backend, DType::U32, [heads, blocks, 2], &row_ranges)?,
            ranges: Tensor::from_slice(backend, DType::U32, [layout.range_budget + heads * blocks, 2], &ranges)?,
            columns: Tensor::from_slice(backend, DType::U32, [heads, stored_tiles * BLOCK], &columns)?,
            keep: Tensor::from_slice(backend, DType::U32, [heads, blocks, stored_tiles, 2], &keep)?,
            window: Tensor::from_slice(backend, DType::U32, [heads, 2], &window)?,
            pairs: Tensor::from_slice(backend, DType::U32, [heads, blocks], &pairs)?,
        })
    }

    /// Every column that some row block of a head computes, ascending.
    fn columns_of(&self, head: usize) -> Vec<u32> {
        let (first, end) = (head * self.row_blocks(), (head + 1) * self.row_blocks());
        let mut columns: Vec<u32> = self.columns[self.column_ptr[first] as usize..self.column_ptr[end] as usize]
            .iter()
            .map(|&c| c as u32)
            .collect();
        columns.sort_unstable();
        columns.dedup();
        columns
    }

    /// Writes the layout of `attend --index-out` (safetensors): `range_ptr` i64 `[H R + 1]`, `ranges` i32 `[*, 2]`,
    /// `column_ptr` i64 `[H R + 1]`, `columns` i32 `[*]`, `window` i32 `[H, 2]`; the lengths are in the file's metadata.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let notes = [
            ("n_heads", self.n_heads.to_string()),
            ("q_len", self.q_len.to_string()),
            ("kv_len", self.kv_len.to_string()),
            ("q_start", self.q_start.to_string()),
            ("block", BLOCK.to_string()),
        ];
        let part = |name, dtype, shape: &[usize], bytes| TensorOut { name, dtype, shape: shape.to_vec(), bytes };
        let cast = bytemuck::cast_slice::<i64, u8>;
        let tensors = [
            part("range_ptr", Dtype::I64, &[self.range_ptr.len()], cast(&self.range_ptr)),
            part("column_ptr", Dtype::I64, &[self.column_ptr.len()], cast(&self.column_ptr)),
            part("ranges", Dtype::I32, &[self.ranges.len(), 2], bytemuck::cast_slice(&self.ranges)),
            part("columns", Dtype::I32, &[self.columns.len()], bytemuck::cast_slice(&self.columns)),
            part("window", Dtype::I32, &[self.n_heads, 2], bytemuck::cast_slice(&self.window)),
        ];
        write_tensors(path.as_ref(), &notes, &tensors)
    }

    /// Reads what [`Self::save`] wrote, and validates it.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::File`] for another layout; as [`HostIndex::validate`].
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut file = TensorFile::open(path)?;
        let length = |file: &TensorFile, name: &str| {
            let found = file.note(name);
            found.and_then(|text| text.parse::<u32>().ok()).map(|n| n as usize).ok_or_else(|| {
                Error::file(path, format!("metadata {name}: expected a number below 2^32, found {found:?}"))
            })
        };
        let (n_heads, q_len) = (length(&file, "n_heads")?, length(&file, "q_len")?);
        let (kv_len, q_start) = (length(&file, "kv_len")?, length(&file, "q_start")?);
        let two_by_two = |file: &mut TensorFile, name: &str| {
            let (shape, values) = file.i32s(name)?;
            match shape[..] {
                [_, 2] => Ok(values.chunks_exact(2).map(|v| [v[0], v[1]]).collect::<Vec<_>>()),
                _ => Err(file.error(name, format!("expected [_, 2], found {shape:?}"))),
            }
        };
        let index = Self {
            n_heads,
            q_len,
            kv_len,
            q_start,
            range_ptr: file.i64s("range_ptr")?.1,
            ranges: two_by_two(&mut file, "ranges")?,
            column_ptr: file.i64s("column_ptr")?.1,
            columns: file.i32s("columns")?.1,
            window: two_by_two(&mut file, "window")?,
        };
        index.validate().map_err(|e| Error::file(path, e.to_string()))?;
        Ok(index)
    }
}

/// That a CSR pointer list begins at 0, never falls, and ends at the length of its list.
fn check_ptr(name: &str, ptr: &[i64], rows: usize, len: usize) -> Result<()> {
    let ends = (ptr.first(), ptr.last());
    if ptr.len() != rows + 1 || ends != (Some(&0), Some(&(len as i64))) || !ptr.is_sorted() {
        return Err(Error::invalid(format!(
            "index: {name}: expected {} ascending values from 0 to {len}, got {} from {:?} to {:?}",
            rows + 1,
            ptr.len(),
            ends.0,
            ends.1
        )));
    }
    Ok(())
}

/// Length of what two ascending lists of disjoint intervals have in common.
fn common(a: &[Range<usize>], b: &[Range<usize>]) -> usize {
    let (mut i, mut j, mut sum) = (0, 0, 0);
    while i < a.len() && j < b.len() {
        sum += a[i].end.min(b[j].end).saturating_sub(a[i].start.max(b[j].start));
        if a[i].end < b[j].end { i += 1 } else { j += 1 }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two heads over 100 queries: a row with two ranges and a column, and an A-shape window (4, 70).
    fn sample() -> HostIndex {
        HostIndex {
            n_heads: 2,
            q_len: 100,
            kv_len: 110,
            q_start: 10,
            range_ptr: vec![0, 1, 3, 4, 5],
            ranges: vec![[0, 74], [3, 20], [60, 188], [0, 74], [0, 138]],
            column_ptr: vec![0, 0, 2, 2, 2],
            columns: vec![1, 40],
            window: vec![[-1, -1], [4, 70]],
        }
    }

    #[test]
    fn counts_agree_with_the_mask() {
        let index = sample();
        index.validate().unwrap();
        let mut all = 0;
        for head in 0..2 {
            let mask = index.to_mask(head);
            let counted: u64 = (0..2).map(|block| index.row(head, block).pairs()).sum();
            assert_eq!(counted, mask.iter().filter(|m| **m).count() as u64, "head {head}");
            all += counted;
            for (i, line) in mask.chunks(110).enumerate() {
                let query = i + 10;
                assert!(line[query + 1..].iter().all(|m| !m), "head {head}, query {query} sees the future");
                if head == 1 {
                    let window: Vec<bool> = (0..110).map(|j| j <= query && (query - j < 70 || j < 4)).collect();
                    assert_eq!(line, window, "query {query}");
                }
            }
        }
        assert_eq!(index.pairs(), all);
        assert_eq!(index.density(), all as f64 / (2. * (100. * 10. + 100. * 101. / 2.)));
    }

    #[test]
    fn coverage_counts_common_pairs() {
        let index = sample();
        assert_eq!(index.coverage(&index).unwrap(), [1., 1.]);
        let mut less = index.clone();
        less.columns = vec![1];
        less.column_ptr = vec![0, 0, 1, 1, 1];
        let pairs: u64 = (0..2).map(|block| index.row(0, block).pairs()).sum();
        assert_eq!(less.coverage(&index).unwrap(), [1. - 36. / pairs as f64, 1.]);
        assert_eq!(index.coverage(&less).unwrap(), [1., 1.]);
        assert!(index.coverage(&HostIndex::empty(2, 100, 100, 0)).is_err());
    }

    #[test]
    fn files_round_trip_and_heads_append() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("index.safetensors");
        let mut index = sample();
        index.append_heads(&sample());
        index.validate().unwrap();
        index.save(&path).unwrap();
        assert_eq!(HostIndex::load(&path).unwrap(), index);
    }

    #[test]
    fn every_broken_rule_is_named() {
        type Break = fn(&mut HostIndex);
        let cases: [(&str, Break); 12] = [
            ("range_ptr", |i| i.range_ptr[2] = 9),
            ("column_ptr", |i| i.column_ptr.truncate(3)),
            ("window: expected 2 heads", |i| i.window.truncate(1)),
            ("window of head 1", |i| i.window[1] = [4, 0]),
            ("head 0, row block 1: range [15, 188)", |i| i.ranges[2][0] = 15),
            ("head 0, row block 0: range [0, 0)", |i| i.ranges[0][1] = 0),
            ("head 0, row block 1: range [60, 999)", |i| i.ranges[2][1] = 999),
            ("head 0, row block 1: column 0", |i| i.columns = vec![1, 0]),
            ("head 0, row block 1: column 80", |i| i.columns = vec![1, 80]),
            ("head 0, row block 1: column 5 lies in the range [3, 20)", |i| i.columns = vec![1, 5]),
            ("head 1, row block 0: query 10 has no key", |i| i.ranges[3][0] = 11),
            ("expected at least one head", |i| i.kv_len = 50),
        ];
        for (expected, break_it) in cases {
            let mut index = sample();
            break_it(&mut index);
            let error = index.validate().expect_err(expected).to_string();
            assert!(error.contains(expected), "{error} does not say {expected}");
        }
    }
}
