//! Mixture of experts: routing, products with the weights of the chosen experts, and the weighted sum of their results.
//!
//! The choices of all tokens are sorted by expert; each expert then multiplies its rows at once. Weights are dense or
//! packed.
//!
//! | folder | what is in it |
//! |---|---|
//! | `route` | the experts of each token, and their weights |
//! | `grouped_matmul`, `quantized_grouped_matmul` | rows times the weights of the chosen experts |
//! | `combine_experts` | the results of a token's experts, weighted and added |
//! | `cpu`, `gpu` | sorting and products that the two products share |

pub(crate) mod combine_experts;
pub(crate) mod cpu;
pub(crate) mod gpu;
pub(crate) mod grouped_matmul;
pub(crate) mod quantized_grouped_matmul;
pub(crate) mod route;
