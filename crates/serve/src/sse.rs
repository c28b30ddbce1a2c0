//! Server-sent events: a chunk of JSON in each.

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use std::fmt::Write;
use tokio::sync::mpsc::{Receiver, channel};

/// Chunks that wait for a slow reader. The events before them wait in the channel of the request.
const WAITING: usize = 16;

/// The chunks of a response.
pub(crate) trait Chunks: Send + 'static {
    /// The next chunks; `None` at the end.
    fn next(&mut self) -> impl Future<Output = Option<Vec<Value>>> + Send;

    /// A chunk after all others.
    fn last(&mut self) -> Option<Value> {
        None
    }

    /// The form of the events.
    fn form(&self) -> EventForm {
        EventForm::Data
    }
}

/// The form of server-sent events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EventForm {
    /// `data` alone, and `[DONE]` at the end.
    Data,
    /// The `type` of each chunk as the event's name.
    Named,
}

/// Appends a chunk as an event.
fn write_event(text: &mut String, form: EventForm, value: &Value) {
    // writing to a string cannot fail
    let _ = match (form, value["type"].as_str()) {
        (EventForm::Named, Some(name)) => write!(text, "event: {name}\ndata: {value}\n\n"),
        _ => write!(text, "data: {value}\n\n"),
    };
}

/// A response that sends chunks as they come. When the client hangs up, the chunks are dropped, which cancels what
/// makes them.
pub(crate) fn response(mut chunks: impl Chunks) -> Response {
    let (sender, receiver) = channel::<String>(WAITING);
    tokio::spawn(async move {
        loop {
            let next = tokio::select! {
                next = chunks.next() => next,
                () = sender.closed() => return,
            };
            let Some(values) = next else { break };
            let mut text = String::new();
            for value in values {
                write_event(&mut text, chunks.form(), &value);
            }
            if !text.is_empty() && sender.send(text).await.is_err() {
                return;
            }
        }
        let mut text = String::new();
        if let Some(value) = chunks.last() {
            write_event(&mut text, chunks.form(), &value);
        }
        if chunks.form() == EventForm::Data {
            text += "data: [DONE]\n\n";
        }
        let _ = sender.send(text).await;
    });
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
    (headers, Body::from_stream(Texts(receiver))).into_response()
}

/// The texts of a channel as a stream.
struct Texts(Receiver<String>);

impl futures_core::Stream for Texts {
    type Item = Result<Bytes, std::convert::Infallible>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|text| text.map(|text| Ok(Bytes::from(text))))
    }
}
