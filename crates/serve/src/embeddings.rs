//! `POST /v1/embeddings`.

use crate::completions::{MAX_PROMPTS, Prompt};
use crate::error::ApiError;
use crate::running::Running;
use crate::{ApiJson, Shared};
use axum::extract::State;
use axum::response::Json;
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
pub(crate) struct EmbeddingRequest {
    input: Prompt,
    model: Option<String>,
    #[serde(default)]
    encoding_format: Encoding,
    dimensions: Option<usize>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Encoding {
    #[default]
    Float,
    Base64,
}

pub(crate) async fn embed(
    State(server): State<Shared>,
    body: ApiJson<EmbeddingRequest>,
) -> Result<Json<Value>, ApiError> {
    let EmbeddingRequest { input, model, encoding_format, dimensions } = body.0;
    let model = server.model(model.as_deref())?;
    let texts = input.encode(&server.tokenizer)?;
    if !(1..=MAX_PROMPTS).contains(&texts.len()) {
        return Err(ApiError::bad(format!("{} inputs came, expected 1 to {MAX_PROMPTS}", texts.len())));
    }
    let context = server.options.max_context;
    if let Some(text) = texts.iter().find(|text| text.len() > context) {
        let why = format!("an input has {} tokens, the context has {context}; shorten it", text.len());
        return Err(ApiError::bad(why).with_code("context_length_exceeded"));
    }
    let mut running = Running::submit_embeddings(&model.engine, texts)?;
    let mut data = Vec::new();
    for (index, mut embedding) in running.all_embeddings().await?.into_iter().enumerate() {
        let size = embedding.len();
        match dimensions {
            Some(wanted) if !(1..=size).contains(&wanted) => {
                return Err(ApiError::bad(format!("`dimensions` is {wanted}, expected 1 to {size}")));
            }
            wanted => embedding.truncate(wanted.unwrap_or(size)),
        }
        normalize(&mut embedding);
        let embedding = match encoding_format {
            Encoding::Float => json!(embedding),
            Encoding::Base64 => {
                let bytes: Vec<u8> = embedding.iter().flat_map(|x| x.to_le_bytes()).collect();
                base64(&bytes).into()
            }
        };
        data.push(json!({"object": "embedding", "index": index, "embedding": embedding}));
    }
    let prompt = running.usage.prompt;
    let usage = json!({"prompt_tokens": prompt, "total_tokens": prompt});
    Ok(Json(json!({"object": "list", "data": data, "model": model.name, "usage": usage})))
}

/// Scales a vector to length 1; zeros stay.
fn normalize(x: &mut [f32]) {
    let norm = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    if norm > 0.0 {
        x.iter_mut().for_each(|x| *x = (f64::from(*x) / norm) as f32);
    }
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let bits = three.iter().chain([&0; 3]).take(3).fold(0, |bits, &byte| bits << 8 | usize::from(byte));
        for digit in 0..4 {
            let shown = digit <= three.len();
            text.push(if shown { char::from(DIGITS[bits >> (18 - 6 * digit) & 63]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_become_base64_with_padding() {
        for (bytes, want) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")] {
            assert_eq!(base64(bytes.as_bytes()), want);
        }
        assert_eq!(base64(&[255, 254, 253]), "//79");
    }

    #[test]
    fn a_vector_gets_length_one_and_zeros_stay() {
        let mut x = [3.0, 0.0, -4.0];
        normalize(&mut x);
        assert_eq!(x, [0.6, 0.0, -0.8]);
        let mut zeros = [0.0; 3];
        normalize(&mut zeros);
        assert_eq!(zeros, [0.0; 3]);
    }
}
