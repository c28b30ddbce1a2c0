//! Counters in the text format of Prometheus.

use crate::Shared;
use alluvium_lm::engine::EngineStats;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use std::fmt::Write;

pub(crate) async fn metrics(State(server): State<Shared>) -> Response {
    let mut stats = EngineStats::default();
    for model in &server.models {
        let own = model.engine.stats();
        stats.waiting += own.waiting;
        stats.running += own.running;
        stats.finished += own.finished;
        stats.cancelled += own.cancelled;
        stats.failed += own.failed;
        stats.prompt_tokens += own.prompt_tokens;
        stats.reused_tokens += own.reused_tokens;
        stats.completion_tokens += own.completion_tokens;
        stats.prefix_cache_bytes += own.prefix_cache_bytes;
    }
    let rows = [
        ("requests_waiting", "gauge", "Requests that wait", stats.waiting as u64),
        ("requests_running", "gauge", "Requests that are read or generated", stats.running as u64),
        ("requests_finished_total", "counter", "Requests that ended with a completion", stats.finished),
        ("requests_cancelled_total", "counter", "Requests whose client hung up", stats.cancelled),
        ("requests_failed_total", "counter", "Requests that failed", stats.failed),
        ("prompt_tokens_total", "counter", "Tokens of prompts", stats.prompt_tokens),
        ("cached_prompt_tokens_total", "counter", "Tokens of prompts found in the prefix cache", stats.reused_tokens),
        ("completion_tokens_total", "counter", "Generated tokens", stats.completion_tokens),
        ("prefix_cache_bytes", "gauge", "Bytes of the prefix cache", stats.prefix_cache_bytes as u64),
    ];
    let mut text = String::new();
    for (name, kind, help, value) in rows {
        // writing to a string cannot fail
        let _ =
            writeln!(text, "# HELP alluvium_{name} {help}.\n# TYPE alluvium_{name} {kind}\nalluvium_{name} {value}");
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}
