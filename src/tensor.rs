//! Owned device tensors and borrowed views of their rows.
//!
//! What makes, writes or reads a tensor fails with [`Error::Shape`] where the values do not fill it, with
//! [`Error::Invalid`] for an element type that the call does not take, and with what the backend reports
//! ([`Error::OutOfMemory`], [`Error::Device`]).

use crate::backend::{Backend, Slice, SliceMut};
use crate::{DType, Error, Result};
use std::ops::Range;

/// Dimensions, outermost first. At most four.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    dims: [usize; 4],
    rank: usize,
}

impl Shape {
    /// The dimensions.
    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.rank]
    }

    /// Product of the dimensions.
    pub fn elements(&self) -> usize {
        self.dims().iter().product()
    }

    /// Elements of one step of the outermost dimension.
    fn row(&self) -> usize {
        self.dims()[1..].iter().product()
    }
}

impl std::fmt::Debug for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(from: [usize; N]) -> Self {
        const { assert!(N >= 1 && N <= 4) };
        let mut dims = [1; 4];
        dims[..N].copy_from_slice(&from);
        Self { dims, rank: N }
    }
}

impl TryFrom<&[usize]> for Shape {
    type Error = Error;
    fn try_from(from: &[usize]) -> Result<Self> {
        if from.is_empty() || from.len() > 4 {
            return Err(Error::invalid(format!("a tensor has 1 to 4 dimensions, not {}", from.len())));
        }
        let mut dims = [1; 4];
        dims[..from.len()].copy_from_slice(from);
        Ok(Self { dims, rank: from.len() })
    }
}

/// A dense row-major tensor in device memory.
pub struct Tensor<B: Backend> {
    buffer: B::Buffer,
    dtype: DType,
    shape: Shape,
}

/// A tensor, or a run of its outermost rows, to read.
pub struct View<'a, B: Backend> {
    slice: Slice<'a, B>,
    shape: Shape,
}

impl<B: Backend> Clone for View<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<B: Backend> Copy for View<'_, B> {}

/// A tensor, or a run of its outermost rows, to write.
pub struct ViewMut<'a, B: Backend> {
    slice: SliceMut<'a, B>,
    shape: Shape,
}

impl<B: Backend> Tensor<B> {
    /// Uninitialised.
    pub fn alloc(backend: &B, dtype: DType, shape: impl Into<Shape>) -> Result<Self> {
        let shape = shape.into();
        Ok(Self { buffer: backend.alloc(dtype.bytes(shape.elements()))?, dtype, shape })
    }

    /// From bytes in the layout of `dtype`.
    pub fn from_bytes(backend: &B, dtype: DType, shape: impl Into<Shape>, bytes: &[u8]) -> Result<Self> {
        let shape = shape.into();
        let want = dtype.bytes(shape.elements());
        if bytes.len() != want {
            return Err(Error::Shape {
                op: "upload",
                what: "bytes",
                expected: want.to_string(),
                got: bytes.len().to_string(),
            });
        }
        Ok(Self { buffer: backend.upload(bytes)?, dtype, shape })
    }

    /// From plain values: f32 or u32.
    pub fn from_slice<T: bytemuck::Pod>(
        backend: &B,
        dtype: DType,
        shape: impl Into<Shape>,
        values: &[T],
    ) -> Result<Self> {
        Self::from_bytes(backend, dtype, shape, bytemuck::cast_slice(values))
    }

    /// f32 values converted to the backend's activation type.
    pub fn activation(backend: &B, shape: impl Into<Shape>, values: &[f32]) -> Result<Self> {
        let dtype = backend.activation();
        Self::from_bytes(backend, dtype, shape, &encode_f32(dtype, values)?)
    }

    /// A tensor over a buffer that the caller made (an operator embedded in another engine).
    pub fn from_buffer(buffer: B::Buffer, dtype: DType, shape: impl Into<Shape>) -> Self {
        Self { buffer, dtype, shape: shape.into() }
    }

    /// Gives the buffer back.
    pub fn into_buffer(self) -> B::Buffer {
        self.buffer
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Dimensions.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The whole, to read.
    pub fn view(&self) -> View<'_, B> {
        View {
            slice: Slice {
                buffer: &self.buffer,
                byte_offset: 0,
                byte_len: self.dtype.bytes(self.shape.elements()),
                dtype: self.dtype,
            },
            shape: self.shape,
        }
    }

    /// The whole, to write.
    pub fn view_mut(&mut self) -> ViewMut<'_, B> {
        let byte_len = self.dtype.bytes(self.shape.elements());
        ViewMut {
            slice: SliceMut { buffer: &mut self.buffer, byte_offset: 0, byte_len, dtype: self.dtype },
            shape: self.shape,
        }
    }

    /// Overwrites everything, in queue order.
    pub fn write<T: bytemuck::Pod>(&mut self, backend: &B, values: &[T]) -> Result<()> {
        backend.write(&mut self.buffer, 0, bytemuck::cast_slice(values))
    }

    /// Overwrites a part, given in bytes as they lie on the device, in queue order.
    pub fn write_bytes(&mut self, backend: &B, byte_offset: usize, bytes: &[u8]) -> Result<()> {
        backend.write(&mut self.buffer, byte_offset, bytes)
    }

    /// Waits for the device and brings a part back as it lies there.
    pub fn read_bytes(&self, backend: &B, bytes: Range<usize>) -> Result<Vec<u8>> {
        pollster::block_on(backend.download(&self.buffer, bytes))
    }

    /// Waits for the device and brings f32, f16 or bf16 values back as f32.
    pub fn to_f32(&self, backend: &B) -> Result<Vec<f32>> {
        self.view().to_f32(backend)
    }

    /// Waits for the device once and brings the u32 values of several tensors back.
    pub(crate) fn all_to_u32(backend: &B, tensors: &[&Self]) -> Result<Vec<Vec<u32>>> {
        let part = |t: &&'_ Self| t.dtype.bytes(t.shape.elements());
        let parts: Vec<_> = tensors.iter().map(|t| (&t.buffer, 0..part(t))).collect();
        let all = pollster::block_on(backend.download_all(&parts))?;
        Ok(all.iter().map(|bytes| bytemuck::pod_collect_to_vec(bytes)).collect())
    }

    /// Waits for the device and brings u32 values back.
    pub fn to_u32(&self, backend: &B) -> Result<Vec<u32>> {
        let bytes = pollster::block_on(backend.download(&self.buffer, 0..self.dtype.bytes(self.shape.elements())))?;
        Ok(bytemuck::pod_collect_to_vec(&bytes))
    }
}

impl<'a, B: Backend> View<'a, B> {
    /// The bytes beneath.
    pub fn slice(&self) -> Slice<'a, B> {
        self.slice
    }

    /// Dimensions.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.slice.dtype
    }

    /// Some of the outermost rows. Panics where the range is out of bounds, as slices do.
    pub fn rows(self, rows: Range<usize>) -> View<'a, B> {
        let (shape, offset, byte_len) = part(self.shape, self.slice.dtype, rows);
        View { slice: Slice { byte_offset: self.slice.byte_offset + offset, byte_len, ..self.slice }, shape }
    }

    /// The elements from one on, in one dimension. Panics where there are fewer.
    pub fn from_element(self, first: usize) -> View<'a, B> {
        let elements = self.shape.elements();
        self.reshape([elements]).rows(first..elements)
    }

    /// The same elements under other dimensions. Panics where their number differs.
    pub fn reshape(self, shape: impl Into<Shape>) -> View<'a, B> {
        let shape = shape.into();
        assert_eq!(shape.elements(), self.shape.elements(), "reshape of {:?} to {shape:?}", self.shape);
        View { shape, ..self }
    }

    /// Waits for the device and brings f32, f16 or bf16 values back as f32.
    pub fn to_f32(&self, backend: &B) -> Result<Vec<f32>> {
        let s = self.slice;
        let bytes = pollster::block_on(backend.download(s.buffer, s.byte_offset..s.byte_offset + s.byte_len))?;
        decode_f32(s.dtype, &bytes)
    }
}

impl<'a, B: Backend> ViewMut<'a, B> {
    /// The bytes beneath.
    pub fn slice(self) -> SliceMut<'a, B> {
        self.slice
    }

    /// Dimensions.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.slice.dtype
    }

    /// Some of the outermost rows. Panics where the range is out of bounds, as slices do.
    pub fn rows(self, rows: Range<usize>) -> ViewMut<'a, B> {
        let (shape, offset, byte_len) = part(self.shape, self.slice.dtype, rows);
        ViewMut { slice: SliceMut { byte_offset: self.slice.byte_offset + offset, byte_len, ..self.slice }, shape }
    }

    /// The elements from one on, in one dimension. Panics where there are fewer.
    pub fn from_element(self, first: usize) -> ViewMut<'a, B> {
        let elements = self.shape.elements();
        self.reshape([elements]).rows(first..elements)
    }

    /// The same elements under other dimensions. Panics where their number differs.
    pub fn reshape(self, shape: impl Into<Shape>) -> ViewMut<'a, B> {
        let shape = shape.into();
        assert_eq!(shape.elements(), self.shape.elements(), "reshape of {:?} to {shape:?}", self.shape);
        ViewMut { shape, ..self }
    }

    /// The same view for a shorter time.
    pub fn reborrow(&mut self) -> ViewMut<'_, B> {
        ViewMut { slice: self.slice.reborrow(), shape: self.shape }
    }
}

/// Shape, byte offset and byte length of a run of rows.
fn part(shape: Shape, dtype: DType, rows: Range<usize>) -> (Shape, usize, usize) {
    assert!(rows.start <= rows.end && rows.end <= shape.dims[0], "rows {rows:?} of {shape:?}");
    let row = shape.row();
    let mut dims = shape.dims;
    dims[0] = rows.len();
    (Shape { dims, ..shape }, dtype.bytes(rows.start * row), dtype.bytes(rows.len() * row))
}

/// f32 values in another element type, rounded to nearest even.
pub fn encode_f32(dtype: DType, values: &[f32]) -> Result<Vec<u8>> {
    use half::slice::HalfFloatSliceExt;
    Ok(match dtype {
        DType::F32 => bytemuck::cast_slice(values).to_vec(),
        DType::F16 => {
            let mut out = vec![half::f16::ZERO; values.len()];
            out.convert_from_f32_slice(values);
            bytemuck::cast_slice(&out).to_vec()
        }
        DType::BF16 => {
            let mut out = vec![half::bf16::ZERO; values.len()];
            out.convert_from_f32_slice(values);
            bytemuck::cast_slice(&out).to_vec()
        }
        other => return Err(Error::invalid(format!("f32 values cannot be stored as {other}"))),
    })
}

/// The inverse of [`encode_f32`].
pub fn decode_f32(dtype: DType, bytes: &[u8]) -> Result<Vec<f32>> {
    Ok(match dtype {
        DType::F32 => bytemuck::pod_collect_to_vec(bytes),
        DType::F16 => bytes.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        DType::BF16 => bytes.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        other => return Err(Error::invalid(format!("{other} values cannot be read as f32"))),
    })
}
