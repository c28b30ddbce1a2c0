//! Matrix products by cuBLASLt: sums in f32, the same bits at every run.
//!
//! The library thinks in columns: what it sees of a matrix by rows is the transpose. So `cᵀ = bᵀ · aᵀ` is what it
//! computes, without moving an element.

use super::driver::{DriverError, Stream};
use crate::DType;
use crate::gpu::engine::Operand;
use cudarc::cublaslt::sys::{
    self, cublasComputeType_t, cublasLtHandle_t, cublasLtMatmulAlgo_t, cublasLtMatmulDesc_t,
    cublasLtMatmulDescAttributes_t as Of, cublasLtMatmulHeuristicResult_t, cublasLtMatmulPreference_t,
    cublasLtMatmulPreferenceAttributes_t as Wish, cublasLtMatrixLayout_t, cublasLtMatrixLayoutAttribute_t as Layout,
    cublasStatus_t, cudaDataType_t,
};
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

/// Memory that products may use while they run.
const WORKSPACE: usize = 32 << 20;

/// Calls a function of the library; `Err` with the name of what went wrong.
macro_rules! call {
    ($name:ident($($argument:expr),* $(,)?)) => {{
        // SAFETY: `libraries::products` found the function; pointers are to live variables of the types that its C
        // declaration names, and handles are those that the library gave.
        let code = unsafe { sys::$name($($argument),*) };
        if code == cublasStatus_t::CUBLAS_STATUS_SUCCESS { Ok(()) } else { Err(format!("{}: {code:?}", stringify!($name))) }
    }};
}

/// The library, its workspace, and the plans of products that were asked for.
pub(super) struct Blas {
    handle: cublasLtHandle_t,
    workspace: u64,
    plans: Mutex<HashMap<Key, Option<Plan>>>,
}

// SAFETY: the library's functions may be called from any thread, and its handles are not changed after they are made.
unsafe impl Send for Blas {}
// SAFETY: as above.
unsafe impl Sync for Blas {}
// SAFETY: as above; descriptors are not changed after they are made.
unsafe impl Send for Plan {}

/// All that a plan depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    sizes: [usize; 3],
    count: usize,
    strides: [[usize; 2]; 3],
    by_columns: [bool; 2],
    dtypes: [DType; 3],
    /// The largest power of two, up to 256, that divides each address.
    alignments: [u32; 3],
}

/// How the library computes one kind of product. It lives as long as the library.
#[derive(Clone, Copy)]
pub(super) struct Plan {
    product: cublasLtMatmulDesc_t,
    layouts: [cublasLtMatrixLayout_t; 3],
    algorithm: cublasLtMatmulAlgo_t,
}

impl Blas {
    /// # Errors
    /// The library's words.
    pub(super) fn new(stream: &Stream) -> Result<Self, String> {
        let words = DriverError::into_words;
        stream.enter().map_err(words)?;
        let mut handle = std::ptr::null_mut();
        call!(cublasLtCreate(&mut handle))?;
        let workspace = stream.allocate(WORKSPACE).map_err(words)?;
        let workspace = workspace.ok_or("there is no memory for the workspace of products")?;
        Ok(Blas { handle, workspace, plans: Mutex::default() })
    }

    /// The plan of a product of operands at these addresses: remembered, or the library's first choice. `None` if it has
    /// none.
    ///
    /// # Errors
    /// The library's words.
    pub(super) fn plan(
        &self,
        stream: &Stream,
        operands: &[Operand<'_>; 3],
        addresses: [u64; 3],
        (sizes, count): ([usize; 3], usize),
    ) -> Result<Option<Plan>, String> {
        stream.enter().map_err(DriverError::into_words)?;
        let key = Key {
            sizes,
            count,
            strides: operands.each_ref().map(|operand| [operand.stride, operand.batch_stride]),
            by_columns: [operands[0].by_columns, operands[1].by_columns],
            dtypes: operands.each_ref().map(|operand| operand.dtype),
            alignments: addresses.map(|address| 1 << address.trailing_zeros().min(8)),
        };
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(plan) = plans.get(&key) {
            return Ok(*plan);
        }
        let plan = Plan::new(self.handle, &key)?;
        plans.insert(key, plan);
        Ok(plan)
    }

    /// `c = alpha · a · b + beta · c`.
    ///
    /// # Errors
    /// The library's words.
    pub(super) fn product(
        &self,
        stream: &Stream,
        plan: &Plan,
        addresses: [u64; 3],
        [alpha, beta]: [f32; 2],
    ) -> Result<(), String> {
        let [a, b, c] = addresses.map(|address| address as *mut c_void);
        let [of_a, of_b, of_c] = plan.layouts;
        let (alpha, beta) = (std::ptr::from_ref(&alpha).cast(), std::ptr::from_ref(&beta).cast());
        let workspace = self.workspace as *mut c_void;
        let queue = stream.handle().cast();
        call!(cublasLtMatmul(
            self.handle,
            plan.product,
            alpha,
            b,
            of_b,
            a,
            of_a,
            beta,
            c,
            of_c,
            c,
            of_c,
            &plan.algorithm,
            workspace,
            WORKSPACE,
            queue,
        ))
    }

    /// Gives everything back.
    pub(super) fn destroy(&self, stream: &Stream) {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        plans.drain().filter_map(|(_, plan)| plan).for_each(Plan::destroy);
        stream.free(self.workspace);
        let _ = call!(cublasLtDestroy(self.handle));
    }
}

impl Plan {
    fn new(handle: cublasLtHandle_t, key: &Key) -> Result<Option<Self>, String> {
        let [m, k, n] = key.sizes;
        let mut product = std::ptr::null_mut();
        let exact = cublasComputeType_t::CUBLAS_COMPUTE_32F;
        call!(cublasLtMatmulDescCreate(&mut product, exact, cudaDataType_t::CUDA_R_32F))?;
        // the library's first factor is b, and a matrix by rows is its own transpose there
        let [a_by_columns, b_by_columns] = key.by_columns;
        for (which, transposed) in
            [(Of::CUBLASLT_MATMUL_DESC_TRANSA, b_by_columns), (Of::CUBLASLT_MATMUL_DESC_TRANSB, a_by_columns)]
        {
            let operation = i32::from(transposed);
            call!(cublasLtMatmulDescSetAttribute(product, which, std::ptr::from_ref(&operation).cast(), 4))?;
        }
        let sides = [(m, k, a_by_columns), (k, n, b_by_columns), (m, n, false)];
        let mut layouts = [std::ptr::null_mut(); 3];
        for (i, (rows, columns, by_columns)) in sides.into_iter().enumerate() {
            let [lines, width] = if by_columns { [columns, rows] } else { [rows, columns] };
            let [stride, batch_stride] = key.strides[i];
            let stride = i64::try_from(stride.max(width)).unwrap_or(i64::MAX);
            let dtype = data_type(key.dtypes[i])?;
            call!(cublasLtMatrixLayoutCreate(&mut layouts[i], dtype, width as u64, lines as u64, stride))?;
            if key.count > 1 {
                let (count, distance) = (key.count as i32, batch_stride as i64);
                let (many, apart) =
                    (Layout::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, Layout::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET);
                call!(cublasLtMatrixLayoutSetAttribute(layouts[i], many, std::ptr::from_ref(&count).cast(), 4))?;
                call!(cublasLtMatrixLayoutSetAttribute(layouts[i], apart, std::ptr::from_ref(&distance).cast(), 8))?;
            }
        }
        let algorithm = choose(handle, product, layouts, key.alignments)?;
        let plan = Plan { product, layouts, algorithm: algorithm.unwrap_or(cublasLtMatmulAlgo_t { data: [0; 8] }) };
        if algorithm.is_none() {
            plan.destroy();
        }
        Ok(algorithm.map(|_| plan))
    }

    fn destroy(self) {
        let _ = call!(cublasLtMatmulDescDestroy(self.product));
        for layout in self.layouts {
            let _ = call!(cublasLtMatrixLayoutDestroy(layout));
        }
    }
}

/// The library's first choice of an algorithm.
fn choose(
    handle: cublasLtHandle_t,
    product: cublasLtMatmulDesc_t,
    [a, b, c]: [cublasLtMatrixLayout_t; 3],
    [a_at, b_at, c_at]: [u32; 3],
) -> Result<Option<cublasLtMatmulAlgo_t>, String> {
    let mut wishes: cublasLtMatmulPreference_t = std::ptr::null_mut();
    call!(cublasLtMatmulPreferenceCreate(&mut wishes))?;
    let set = |wish, value: *const c_void, len| call!(cublasLtMatmulPreferenceSetAttribute(wishes, wish, value, len));
    set(Wish::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, std::ptr::from_ref(&WORKSPACE).cast(), 8)?;
    // parts of a sum are added in a fixed order: by a further kernel, not where they meet
    let reductions = 0b110u32;
    set(Wish::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, std::ptr::from_ref(&reductions).cast(), 4)?;
    let places = [
        (Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, b_at),
        (Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, a_at),
        (Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, c_at),
        (Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, c_at),
    ];
    for (wish, alignment) in places {
        set(wish, std::ptr::from_ref(&alignment).cast(), 4)?;
    }
    let mut count = 0;
    let mut found = cublasLtMatmulHeuristicResult_t {
        algo: cublasLtMatmulAlgo_t { data: [0; 8] },
        workspaceSize: 0,
        state: cublasStatus_t::CUBLAS_STATUS_SUCCESS,
        wavesCount: 0.0,
        reserved: [0; 4],
    };
    // an error says that there is none
    let asked = call!(cublasLtMatmulAlgoGetHeuristic(handle, product, b, a, c, c, wishes, 1, &mut found, &mut count));
    let _ = call!(cublasLtMatmulPreferenceDestroy(wishes));
    let is_found = asked.is_ok() && count > 0 && found.state == cublasStatus_t::CUBLAS_STATUS_SUCCESS;
    Ok(is_found.then_some(found.algo))
}

fn data_type(dtype: DType) -> Result<cudaDataType_t, String> {
    match dtype {
        DType::F32 => Ok(cudaDataType_t::CUDA_R_32F),
        DType::F16 => Ok(cudaDataType_t::CUDA_R_16F),
        DType::BF16 => Ok(cudaDataType_t::CUDA_R_16BF),
        other => Err(format!("a product of {other}")),
    }
}
