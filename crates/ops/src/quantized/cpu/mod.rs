//! Quantized rows on the CPU: reading and writing codes, products with them, gradients of scales and biases.

mod backward;
mod bytes;
mod codes;
mod decode;
mod forward;
mod octets;
mod product;
mod stream;
mod strips;

pub(crate) use backward::scale_gradients;
pub(crate) use codes::{Codes, power, small};
pub(crate) use stream::Stream;
