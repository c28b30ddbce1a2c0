//! Tensors: shared memory of a device with a shape and a dtype.

mod device;
mod host;

use crate::cpu::Bytes;
use crate::tape::Node;
use crate::{DType, Device, Element, Error, Kind, Result, Shape, gpu};
use std::borrow::Cow;
use std::sync::Arc;

/// A dense array on a device: shared memory with a shape and a dtype. Cheap to clone: a handle.
///
/// Always contiguous and row-major. A tensor that a [`Tape`](crate::Tape) watches, or that was computed from one, is
/// *traced*: operations on it are recorded.
#[derive(Clone)]
pub struct Tensor {
    storage: Storage,
    /// In bytes.
    offset: usize,
    shape: Shape,
    dtype: DType,
    device: Device,
    node: Option<Node>,
}

/// Shared memory of a device.
#[derive(Clone, Debug)]
pub(crate) enum Storage {
    Cpu(Bytes),
    Gpu(Arc<gpu::Bytes>),
}

impl Tensor {
    pub(crate) fn new(storage: Storage, shape: Shape, dtype: DType, device: Device) -> Self {
        Tensor { storage, offset: 0, shape, dtype, device, node: None }
    }

    /// A tensor of these elements.
    ///
    /// # Errors
    /// When their number is not the shape's, or the device is out of memory.
    pub fn from_slice<T: Element>(data: &[T], shape: impl Into<Shape>, device: &Device) -> Result<Self> {
        let shape = shape.into().checked()?;
        if data.len() != shape.elements() {
            return Err(Error::value("tensor", format!("{} elements do not fill {shape}", data.len())));
        }
        match device {
            Device::Cpu(cpu) => {
                let mut buffer = cpu.buffer::<T>(data.len())?;
                buffer.copy_from_slice(data);
                cpu.wrap(buffer, shape)
            }
            Device::Gpu(gpu) => gpu.upload(bytemuck::cast_slice(data), shape, T::DTYPE),
        }
    }

    /// A tensor of zeros.
    ///
    /// # Errors
    /// When the shape is too large or the device is out of memory.
    pub fn zeros(shape: impl Into<Shape>, dtype: DType, device: &Device) -> Result<Self> {
        let shape = shape.into().checked()?;
        match device {
            Device::Cpu(cpu) => {
                let bytes = cpu.zeros::<u8>(shape.elements() * dtype.size())?.into_bytes();
                Ok(Tensor::new(Storage::Cpu(bytes), shape, dtype, device.clone()))
            }
            Device::Gpu(gpu) => gpu.zeros(shape, dtype),
        }
    }

    /// An f32 tensor filled with one value.
    ///
    /// # Errors
    /// As [`Tensor::zeros`].
    pub fn full(shape: impl Into<Shape>, value: f32, device: &Device) -> Result<Self> {
        let shape = shape.into().checked()?;
        match device {
            Device::Cpu(cpu) => {
                let mut buffer = cpu.buffer::<f32>(shape.elements())?;
                buffer.fill(value);
                cpu.wrap(buffer, shape)
            }
            Device::Gpu(gpu) => gpu.full(shape, value),
        }
    }

    /// A tensor of raw little-endian bytes, as files hold them. The bytes need not be aligned.
    ///
    /// # Errors
    /// When their number is not that of the shape and dtype, or the device is out of memory.
    pub fn from_bytes(bytes: &[u8], shape: impl Into<Shape>, dtype: DType, device: &Device) -> Result<Self> {
        let shape = shape.into().checked()?;
        if bytes.len() != shape.elements() * dtype.size() {
            return Err(Error::value("tensor", format!("{} bytes do not fill {shape} of {dtype}", bytes.len())));
        }
        match device {
            Device::Cpu(cpu) => {
                let mut buffer = cpu.buffer::<u8>(bytes.len())?;
                buffer.copy_from_slice(bytes);
                Ok(Tensor::new(Storage::Cpu(buffer.into_bytes()), shape, dtype, device.clone()))
            }
            Device::Gpu(gpu) => gpu.upload(bytes, shape, dtype),
        }
    }

    /// A tensor whose raw little-endian bytes `fill` writes: a file is read straight into the tensor's memory, which is
    /// not rounded up to a size class.
    ///
    /// # Errors
    /// When the device is out of memory, and those of `fill`.
    pub fn filled(
        shape: impl Into<Shape>,
        dtype: DType,
        device: &Device,
        fill: impl FnOnce(&mut [u8]) -> Result<()>,
    ) -> Result<Self> {
        let shape = shape.into().checked()?;
        match device {
            Device::Cpu(cpu) => {
                let mut buffer = cpu.exact_buffer::<u8>(shape.elements() * dtype.size())?;
                fill(&mut buffer)?;
                Ok(Tensor::new(Storage::Cpu(buffer.into_bytes()), shape, dtype, device.clone()))
            }
            Device::Gpu(gpu) => {
                let mut bytes = gpu.memory().host_buffer(shape.elements() * dtype.size())?;
                fill(&mut bytes)?;
                gpu.upload(&bytes, shape, dtype)
            }
        }
    }

    /// A copy of the elements. On a GPU it waits for the launches that compute them.
    ///
    /// # Errors
    /// When `T` is not the tensor's dtype, or the GPU was lost.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        self.holds::<T>()?;
        match &self.device {
            Device::Cpu(_) => Ok(self.slice::<T>()?.to_vec()),
            Device::Gpu(gpu) => Ok(bytemuck::pod_collect_to_vec(&gpu.download(self)?)),
        }
    }

    /// A copy of the elements of a floating tensor as f32.
    ///
    /// # Errors
    /// When the dtype is no floating one, or the GPU was lost.
    pub fn to_floats(&self) -> Result<Vec<f32>> {
        match &self.device {
            Device::Cpu(cpu) => Ok(cpu.read(self)?.to_vec()),
            Device::Gpu(gpu) => gpu.widen(self)?.to_vec(),
        }
    }

    /// A copy of the raw little-endian bytes, as files hold them.
    ///
    /// # Errors
    /// When the GPU was lost.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        match &self.device {
            Device::Cpu(_) => Ok(self.bytes()?.to_vec()),
            Device::Gpu(gpu) => gpu.download(self),
        }
    }

    /// Ids or offsets in host memory. It does not wait for a GPU if they were uploaded from there.
    ///
    /// # Errors
    /// When the dtype is not u32, or the GPU was lost.
    pub fn ids(&self) -> Result<Cow<'_, [u32]>> {
        match &self.storage {
            Storage::Cpu(_) => Ok(Cow::Borrowed(self.slice()?)),
            Storage::Gpu(_) => match self.host_mirror() {
                Some(known) => Ok(Cow::Borrowed(known)),
                None => Ok(Cow::Owned(self.to_vec()?)),
            },
        }
    }

    /// Ids or offsets if the host has them: on the CPU, or as uploaded to a GPU and not written since.
    pub fn host_mirror(&self) -> Option<&[u32]> {
        match &self.storage {
            Storage::Cpu(_) => self.slice().ok(),
            Storage::Gpu(bytes) => bytes.mirror()?.get(self.offset / 4..)?.get(..self.elements()),
        }
    }

    /// The same elements on another device; the tensor itself if it is on that device. Not traced.
    ///
    /// # Errors
    /// When either device fails.
    pub fn to(&self, device: &Device) -> Result<Self> {
        if self.device == *device {
            return Ok(self.detach());
        }
        Tensor::from_bytes(&self.to_bytes()?, self.shape, self.dtype, device)
    }

    /// The value of a tensor of one element, as f32.
    ///
    /// # Errors
    /// When it has more or less than one element or no floating dtype, or the GPU was lost.
    pub fn item(&self) -> Result<f32> {
        match self.to_floats()?[..] {
            [x] => Ok(x),
            _ => Err(Error::value("item", format!("{} is not one element", self.shape))),
        }
    }

    /// The elements in host memory, for kernels.
    ///
    /// # Errors
    /// When `T` is not the tensor's dtype, or it is on another device.
    pub fn slice<T: Element>(&self) -> Result<&[T]> {
        self.holds::<T>()?;
        Ok(bytemuck::cast_slice(self.bytes()?))
    }

    fn holds<T: Element>(&self) -> Result<()> {
        if T::DTYPE == self.dtype {
            return Ok(());
        }
        Err(Kind::Dtype { op: "read", arg: "tensor", got: self.dtype, want: T::DTYPE.to_string() }.into())
    }

    pub(crate) fn bytes(&self) -> Result<&[u8]> {
        match &self.storage {
            Storage::Cpu(bytes) => Ok(&bytes.as_slice()[self.offset..][..self.elements() * self.dtype.size()]),
            Storage::Gpu(_) => Err(Error::value("read", format!("{self:?} is not in host memory"))),
        }
    }

    pub(crate) fn gpu_bytes(&self) -> Result<&gpu::Bytes> {
        match &self.storage {
            Storage::Cpu(_) => Err(Error::value("launch", format!("{self:?} is not in a GPU's memory"))),
            Storage::Gpu(bytes) => Ok(bytes),
        }
    }

    /// The byte of the shared memory where its elements begin.
    pub(crate) fn offset(&self) -> usize {
        self.offset
    }

    /// The bytes of its elements.
    pub(crate) fn bytes_len(&self) -> usize {
        self.elements() * self.dtype.size()
    }

    /// The bytes from the start of the memory it shares to the end of its elements.
    pub(crate) fn whole_buffer(&self) -> Self {
        let shape = Shape::from([self.offset + self.bytes_len()]);
        Tensor { shape, offset: 0, dtype: DType::U8, ..self.detach() }
    }

    /// The elements for writing in place, if nothing else holds this memory.
    pub fn slice_mut<T: Element>(&mut self) -> Option<&mut [T]> {
        if T::DTYPE != self.dtype {
            return None;
        }
        let (offset, len) = (self.offset, self.elements() * self.dtype.size());
        let Storage::Cpu(bytes) = &mut self.storage else { return None };
        Some(bytemuck::cast_slice_mut(&mut bytes.as_mut_slice()?[offset..][..len]))
    }

    /// Whether nothing else holds this memory, so that a kernel may write to it in place.
    pub fn is_unique(&mut self) -> bool {
        match &mut self.storage {
            Storage::Cpu(bytes) => bytes.as_mut_slice().is_some(),
            // a kernel cannot write to a view that no binding may start at
            Storage::Gpu(bytes) => match &self.device {
                Device::Gpu(gpu) if self.offset.is_multiple_of(gpu.limits().alignment) => Arc::get_mut(bytes).is_some(),
                _ => false,
            },
        }
    }

    /// `self + x` for floating tensors of one shape and device, in place if the sum has the dtype of `self` and nothing
    /// else holds this memory. Not traced.
    ///
    /// Elements are added in f32. The sum is f32 if one of the two is; that of two tensors of one half-precision dtype is
    /// rounded to it, once.
    ///
    /// # Errors
    /// When the shapes or devices differ, a dtype is no floating one, two half-precision dtypes differ, or memory is used
    /// up.
    pub fn accumulate(self, x: &Tensor) -> Result<Self> {
        let floats = self.dtype.is_float() && x.dtype.is_float();
        let dtypes = self.dtype == x.dtype || self.dtype == DType::F32 || x.dtype == DType::F32;
        if self.shape != x.shape || self.device != x.device || !floats || !dtypes {
            return Err(Error::value("accumulate", format!("{self:?} and {x:?} cannot be added")));
        }
        let dtype = if self.dtype == x.dtype { x.dtype } else { DType::F32 };
        let sum = if self.dtype == dtype { self.detach_owned() } else { self.converted(dtype)? };
        let x = &x.converted(dtype)?;
        match &x.device {
            Device::Cpu(cpu) => host::accumulate(cpu, sum, x),
            Device::Gpu(gpu) => crate::gpu::accumulate(gpu, sum, x),
        }
    }

    /// The elements of a floating tensor in a floating dtype, rounded once: the tensor itself if it has that dtype. Not
    /// traced.
    pub(crate) fn converted(&self, dtype: DType) -> Result<Self> {
        match &self.device {
            Device::Cpu(cpu) => host::converted(cpu, self, dtype),
            Device::Gpu(gpu) => gpu.convert(self, dtype),
        }
    }

    /// As [`Tensor::detach`], without another holder of the memory.
    fn detach_owned(self) -> Self {
        Tensor { node: None, ..self }
    }

    /// The lengths of the axes.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The type of the elements.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The device that holds it.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The number of elements.
    pub fn elements(&self) -> usize {
        self.shape.elements()
    }

    /// A view of the same elements with another shape. Its gradient is the reverse reshape.
    ///
    /// # Errors
    /// When the number of elements differs.
    pub fn reshape(&self, shape: impl Into<Shape>) -> Result<Self> {
        let shape = shape.into().checked()?;
        if shape.elements() != self.elements() {
            return Err(Error::value("reshape", format!("{} cannot become {shape}", self.shape)));
        }
        let view = Tensor { shape, node: None, ..self.clone() };
        let from = self.shape;
        crate::tape::record([self], view, || Reshape { from })
    }

    /// A view of rows `first .. first + len` along the first axis, of an untraced tensor.
    ///
    /// # Errors
    /// When there are no such rows, or the tensor is traced: the operation `slice` has a gradient.
    pub fn rows(&self, first: usize, len: usize) -> Result<Self> {
        crate::tape::no_gradient("rows", "it is a view; the operation `slice` has one", [self])?;
        let rows = self.shape.first().copied().unwrap_or(0);
        if len == 0 || first.checked_add(len).is_none_or(|end| end > rows) {
            return Err(Error::value("rows", format!("{len} rows from {first} are not in {}", self.shape)));
        }
        let row_bytes = self.elements() / rows * self.dtype.size();
        let shape = self.shape.with(0, len);
        Ok(Tensor { shape, offset: self.offset + first * row_bytes, node: None, ..self.clone() })
    }

    /// Tensors whose rows lie one after the other in the same memory, as one tensor of all of them; `None` where they do
    /// not, their rows differ, or one is traced. The reverse of taking consecutive [`Tensor::rows`].
    pub fn joined<'a>(parts: impl IntoIterator<Item = &'a Tensor>) -> Option<Self> {
        let mut parts = parts.into_iter();
        let first = parts.next().filter(|first| !first.is_traced())?;
        let mut rows = *first.shape.first()?;
        let mut end = first.offset + first.bytes_len();
        for part in parts {
            let shares = match (&first.storage, &part.storage) {
                (Storage::Cpu(a), Storage::Cpu(b)) => a.is_same(b),
                (Storage::Gpu(a), Storage::Gpu(b)) => Arc::ptr_eq(a, b),
                _ => false,
            };
            let next = *part.shape.first()?;
            let alike = part.dtype == first.dtype && part.shape.with(0, 1) == first.shape.with(0, 1);
            if !shares || !alike || part.offset != end || part.is_traced() {
                return None;
            }
            (rows, end) = (rows + next, end + part.bytes_len());
        }
        Some(Tensor { shape: first.shape.with(0, rows), node: None, ..first.clone() })
    }

    /// The same elements, not traced.
    pub fn detach(&self) -> Self {
        Tensor { node: None, ..self.clone() }
    }

    /// Whether a tape that still exists traces this tensor.
    pub fn is_traced(&self) -> bool {
        self.node.as_ref().is_some_and(Node::is_live)
    }

    pub(crate) fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    pub(crate) fn with_node(self, node: Node) -> Self {
        Tensor { node: Some(node), ..self }
    }
}

/// The gradient of a reshape: the same elements in the shape of the input.
#[derive(Debug)]
struct Reshape {
    from: Shape,
}

impl crate::Backward<1> for Reshape {
    fn op(&self) -> &'static str {
        "reshape"
    }

    fn moves(&self) -> bool {
        true
    }

    fn backward(self, dy: Tensor, _need: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        Ok([Some(dy.reshape(self.from)?)])
    }
}

/// Shape, dtype and device, without the elements.
impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor {} {} on {}", self.shape, self.dtype, self.device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_reshape_are_views_of_the_same_memory() {
        let x = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0], [3, 2], &Device::cpu()).unwrap();
        let y = x.rows(1, 2).unwrap().reshape([4]).unwrap();
        assert_eq!(y.to_vec::<f32>().unwrap(), [3.0, 4.0, 5.0, 6.0]);
        assert_eq!(x.slice::<f32>().unwrap()[2..].as_ptr(), y.slice::<f32>().unwrap().as_ptr());
        assert_eq!(x.rows(2, 2).unwrap_err().to_string(), "rows: 2 rows from 2 are not in [3, 2]");
        assert_eq!(x.reshape([5]).unwrap_err().to_string(), "reshape: [3, 2] cannot become [5]");
    }

    #[test]
    fn consecutive_rows_of_one_memory_are_joined_again() {
        let device = Device::cpu();
        let x = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0], [3, 2], &device).unwrap();
        let [a, b] = [x.rows(0, 1).unwrap(), x.rows(1, 2).unwrap()];
        let joined = Tensor::joined([&a, &b]).unwrap();
        assert_eq!(joined.shape(), x.shape());
        assert_eq!(joined.slice::<f32>().unwrap().as_ptr(), x.slice::<f32>().unwrap().as_ptr());
        let copy = Tensor::from_slice(&[3.0f32, 4.0], [1, 2], &device).unwrap();
        let traced = crate::Tape::new().watch(&b);
        let wide = b.reshape([1, 4]).unwrap();
        assert!(Tensor::joined([&a, &traced]).is_some(), "its tape is gone");
        let tape = crate::Tape::new();
        for apart in [&[&b, &a][..], &[&a, &a], &[&a, &copy], &[&a, &wide], &[&a, &tape.watch(&b)], &[]] {
            assert!(Tensor::joined(apart.iter().copied()).is_none(), "{apart:?}");
        }
    }

    #[test]
    fn half_precision_is_rounded_once_and_read_back() {
        let device = Device::cpu();
        let Device::Cpu(cpu) = &device else { return };
        let mut data = cpu.buffer(2).unwrap();
        data.copy_from_slice(&[1.0 + 1.0 / 512.0, -3.0]);
        let x = cpu.tensor(data, [2], DType::BF16).unwrap();
        assert_eq!(x.to_floats().unwrap(), [1.0, -3.0]);
        assert_eq!(x.to_bytes().unwrap().len(), 4);
    }

    #[test]
    fn memory_is_written_only_when_nothing_else_holds_it() {
        let mut x = Tensor::zeros([4], DType::F32, &Device::cpu()).unwrap();
        let other = x.clone();
        assert!(x.slice_mut::<f32>().is_none());
        drop(other);
        assert!(x.slice_mut::<f32>().is_some());
    }
}
