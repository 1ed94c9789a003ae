//! Weight files: safetensors (one file, or a directory with shards) and GGUF, mapped into memory and checked before use.
//!
//! A [`WeightFile`] knows names, shapes, element types and bytes; what the tensors mean is the model's affair. Shapes
//! are row-major, outermost first, so a linear layer is `[out, in]` in both formats (GGUF stores its dimensions the
//! other way round and is reversed on reading). Nothing is converted on opening: [`dequantize_into`] does that for the
//! rows that are needed.
//!
//! Files come from strangers. Every length, count and offset is checked against the size of the file before it is used
//! or allocated for, and what does not fit is an [`Error::File`] that names the field and both values.

mod dequant;
pub mod gguf;
mod mmap;
mod random;
mod safetensors;

pub use dequant::{dequantize, dequantize_into};
pub use gguf::Gguf;
pub use mmap::Bytes;
pub use random::random_blocks;

use crate::{DType, Error, Result};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

// Multi-byte numbers of both formats are little-endian and are handed on as they lie in the file.
#[cfg(target_endian = "big")]
compile_error!("weight files are read in place, which needs a little-endian machine");

/// Element type and shape of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// How the elements are stored.
    pub dtype: DType,
    /// Row-major dimensions, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// Number of elements; it fits, for it was checked on opening.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// A tensor in a file: its element type, shape and bytes.
#[derive(Clone, Copy, Debug)]
pub struct RawTensor<'a> {
    /// How the elements are stored.
    pub dtype: DType,
    /// Row-major dimensions, outermost first.
    pub shape: &'a [usize],
    /// `dtype.bytes(elements)` bytes.
    pub bytes: &'a [u8],
}

impl RawTensor<'_> {
    /// All elements as f32.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a type that cannot be read.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        dequantize(self.dtype, self.bytes, self.shape.iter().product())
    }
}

/// A tensor and where it lies.
struct Entry {
    info: TensorInfo,
    /// The file's own name for an integer type that no weight of ours has (position buffers and the like).
    foreign: Option<String>,
    shard: usize,
    range: Range<usize>,
}

struct Shard {
    path: PathBuf,
    bytes: Arc<Bytes>,
}

/// The tensors of a model, wherever its files keep them.
///
/// ```
/// use minference::weights::WeightFile;
/// let mut file = 63u64.to_le_bytes().to_vec();
/// file.extend(br#"{"x":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}}       "#);
/// file.extend([1.0f32, 2.0].iter().flat_map(|x| x.to_le_bytes()));
/// let file = WeightFile::from_bytes("two numbers", file)?;
/// assert_eq!(file.require("x", &[1, 2])?.to_f32()?, [1.0, 2.0]);
/// assert_eq!(
///     file.require("x", &[2, 1]).unwrap_err().to_string(),
///     "two numbers: tensor x: expected [2, 1], found [1, 2]"
/// );
/// # Ok::<(), minference::Error>(())
/// ```
pub struct WeightFile {
    path: PathBuf,
    shards: Vec<Shard>,
    names: Vec<String>,
    entries: HashMap<String, Entry>,
    gguf: Option<Gguf>,
}

impl WeightFile {
    /// Opens a `.safetensors` or `.gguf` file, or a directory that holds `model.safetensors.index.json`,
    /// `model.safetensors`, or else exactly one file of either kind. A split GGUF (`-00001-of-00003.gguf`) is opened
    /// by its first part.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::File`] that names the field with both values.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let meta = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
        if !meta.is_dir() {
            return Self::open_file(path);
        }
        let index = path.join("model.safetensors.index.json");
        if index.is_file() {
            return Self::open_index(&index);
        }
        let single = path.join("model.safetensors");
        if single.is_file() {
            return Self::open_file(&single);
        }
        Self::open_file(&only_weight_file(path)?)
    }

    /// A file already in memory, such as one built into the program; `path` is the name that errors give it.
    ///
    /// # Errors
    /// [`Error::File`] that names the field with both values.
    pub fn from_bytes(path: impl Into<PathBuf>, bytes: impl Into<Bytes>) -> Result<Self> {
        let path = path.into();
        let mut file = Self::empty(&path);
        file.add(path, bytes.into())?;
        Ok(file)
    }

    fn empty(path: &Path) -> Self {
        Self { path: path.to_path_buf(), shards: Vec::new(), names: Vec::new(), entries: HashMap::new(), gguf: None }
    }

    fn open_file(path: &Path) -> Result<Self> {
        let mut file = Self::empty(path);
        file.add(path.to_path_buf(), Bytes::map(path)?)?;
        let parts = file.gguf.as_ref().map_or(Ok(Vec::new()), |gguf| gguf.other_parts(path))?;
        for part in parts {
            let bytes = Bytes::map(&part)?;
            file.add(part, bytes)?;
        }
        Ok(file)
    }

    /// Reads `{"weight_map": {tensor: file}}` and every file it names.
    fn open_index(index: &Path) -> Result<Self> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let text = crate::files::read(index)?;
        let Index { weight_map } = serde_json::from_slice(&text).map_err(|e| Error::file(index, e.to_string()))?;
        let dir = index.parent().unwrap_or(Path::new("."));
        let mut file = Self::empty(dir);
        for part in weight_map.values().collect::<BTreeSet<_>>() {
            // A name with directories in it could point anywhere on the reader's disk.
            if Path::new(part).file_name() != Some(part.as_ref()) {
                return Err(Error::file(index, format!("weight_map: {part:?} is not a plain file name")));
            }
            let path = dir.join(part);
            let bytes = Bytes::map(&path)?;
            file.add(path, bytes)?;
        }
        for (name, part) in &weight_map {
            let entry = file.entries.get(name);
            let found = entry.map(|e| file.shards[e.shard].path.as_path());
            if found != Some(&dir.join(part)) {
                let found = found.map_or("nowhere".into(), |p| p.display().to_string());
                return Err(Error::file(index, format!("tensor {name}: expected in {part}, found {found}")));
            }
        }
        Ok(file)
    }

    /// Adds the tensors of one file of either format, told apart by its first bytes.
    fn add(&mut self, path: PathBuf, bytes: Bytes) -> Result<()> {
        let bytes = Arc::new(bytes);
        let tensors = if bytes.starts_with(gguf::MAGIC) {
            let (gguf, tensors) = gguf::read(&path, bytes.clone())?;
            self.gguf.get_or_insert(gguf);
            tensors
        } else if path.extension().is_some_and(|e| e == "gguf") {
            let found = bytes[..bytes.len().min(4)].escape_ascii().to_string();
            return Err(Error::file(path, format!("magic: expected \"GGUF\", found \"{found}\"")));
        } else {
            safetensors::read_header(&path, &bytes)?
        };
        let shard = self.shards.len();
        self.shards.push(Shard { path, bytes });
        for (name, entry) in tensors {
            if let Some(other) = self.entries.get(&name) {
                let [here, other] = [shard, other.shard].map(|s| &self.shards[s].path);
                return Err(Error::file(here, format!("tensor {name}: is in {} too", other.display())));
            }
            if entry.foreign.is_none() {
                self.names.push(name.clone());
            }
            self.entries.insert(name, Entry { shard, ..entry });
        }
        Ok(())
    }

    /// The file or directory that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The metadata of a GGUF file.
    pub fn gguf(&self) -> Option<&Gguf> {
        self.gguf.as_ref()
    }

    /// Names of the tensors, file by file in the order of the headers. Integer buffers that no weight of ours can be
    /// (I64 positions and the like) are left out.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// Element type and shape of a tensor; `None` where the file has none of that name.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.entries.get(name).filter(|e| e.foreign.is_none()).map(|e| &e.info)
    }

    /// The bytes of a tensor.
    ///
    /// # Errors
    /// [`Error::File`] where there is none of that name, [`Error::Unsupported`] where its type cannot be read.
    pub fn bytes(&self, name: &str) -> Result<&[u8]> {
        Ok(self.tensor(name)?.bytes)
    }

    /// A tensor of any shape. Errors as [`WeightFile::bytes`].
    pub fn tensor(&self, name: &str) -> Result<RawTensor<'_>> {
        let entry =
            self.entries.get(name).ok_or_else(|| Error::file(&self.path, format!("tensor {name}: not in the file")))?;
        let shard = &self.shards[entry.shard];
        if let Some(foreign) = &entry.foreign {
            return Err(Error::Unsupported(format!("{}: tensor {name}: type {foreign}", shard.path.display())));
        }
        let TensorInfo { dtype, ref shape } = entry.info;
        Ok(RawTensor { dtype, shape, bytes: &shard.bytes[entry.range.clone()] })
    }

    /// A tensor that must have this shape. Errors as [`WeightFile::bytes`], and where the shape differs.
    pub fn require(&self, name: &str, shape: &[usize]) -> Result<RawTensor<'_>> {
        let tensor = self.tensor(name)?;
        if tensor.shape != shape {
            let path = &self.shards[self.entries[name].shard].path;
            let found = tensor.shape;
            return Err(Error::file(path, format!("tensor {name}: expected {shape:?}, found {found:?}")));
        }
        Ok(tensor)
    }
}

/// The single weight file of a directory without the usual names.
fn only_weight_file(dir: &Path) -> Result<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        let path = entry.map_err(|e| Error::io(dir, e))?.path();
        let is_weights = path.extension().is_some_and(|e| e == "gguf" || e == "safetensors");
        // Of a split GGUF only the first part counts.
        if is_weights && gguf::part_of(&path).is_none_or(|(_, part, _)| part == 1) {
            files.push(path);
        }
    }
    files.sort();
    match &files[..] {
        [only] => Ok(only.clone()),
        [] => Err(Error::file(dir, "no model.safetensors, model.safetensors.index.json or .gguf file in it")),
        [a, b, ..] => {
            let [a, b] = [a, b].map(|p| p.file_name().unwrap_or_default().display().to_string());
            Err(Error::file(dir, format!("{} weight files, among them {a} and {b}: name one", files.len())))
        }
    }
}

/// Refuses tensors that share bytes: each has its own in any file a writer made.
fn check_overlap(path: &Path, tensors: &[(String, Entry)]) -> Result<()> {
    let mut order: Vec<_> = tensors.iter().filter(|(_, e)| !e.range.is_empty()).collect();
    order.sort_by_key(|(_, e)| e.range.start);
    for pair in order.windows(2) {
        let [(a, first), (b, second)] = [pair[0], pair[1]];
        if second.range.start < first.range.end {
            let (start, end) = (second.range.start, first.range.end);
            return Err(Error::file(path, format!("tensor {b}: begins at byte {start}, but tensor {a} ends at {end}")));
        }
    }
    Ok(())
}

/// Puts the rows of a `q` or `k` projection from a GGUF of the architecture `llama` into Hugging Face order.
///
/// llama.cpp's converter interleaves the two halves of each head so that its RoPE can rotate pairs `(2i, 2i + 1)`; row
/// `2i + j` of a head there is row `j * head_dim / 2 + i` in the original. Rows move whole, so `data` may be quantised:
/// `[n_heads * head_dim, in]` weights with `row_bytes` bytes a row, or a bias with 4.
pub fn unpermute_rows(data: &[u8], row_bytes: usize, n_heads: usize) -> Result<Vec<u8>> {
    let rows = data.len().checked_div(row_bytes).unwrap_or(0);
    let head_dim = rows.checked_div(n_heads).unwrap_or(0);
    if !head_dim.is_multiple_of(2) || head_dim * n_heads * row_bytes != data.len() {
        return Err(Error::Shape {
            op: "unpermute_rows",
            what: "bytes",
            expected: format!("{n_heads} heads of an even number of rows of {row_bytes} bytes"),
            got: data.len().to_string(),
        });
    }
    let mut out = Vec::with_capacity(data.len());
    for head in 0..n_heads {
        for row in 0..head_dim {
            let (half, i) = (row / (head_dim / 2), row % (head_dim / 2));
            let from = (head * head_dim + 2 * i + half) * row_bytes;
            out.extend_from_slice(&data[from..from + row_bytes]);
        }
    }
    Ok(out)
}
