//! Connections, within limits of their number, of headers and of time.

use crate::error::ApiError;
use crate::timed::Timed;
use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// Bytes of the head of a request.
const MAX_HEAD: usize = 64 << 10;
/// The time after an accept that failed, for want of file descriptors mostly.
const PAUSE: Duration = Duration::from_millis(50);

/// The limits of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at the same time; further ones wait.
    pub connections: usize,
    /// The time in which the head of a request must come, and that a connection may be idle between two requests.
    pub head_time: Duration,
    /// The time in which the body of a request must come.
    pub body_time: Duration,
    /// The time in which a client must take something of what is sent to it.
    pub write_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let [half, whole] = [30, 60].map(Duration::from_secs);
        Limits { connections: 1024, head_time: half, body_time: whole, write_time: whole }
    }
}

/// Serves until `stop` resolves; then refuses new connections and finishes what runs.
///
/// # Errors
/// None: a connection that fails ends alone.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let router = router.layer(from_fn(bound_head));
    let (graceful, connections) = (GracefulShutdown::new(), Arc::new(Semaphore::new(limits.connections)));
    let mut http = hyper::server::conn::http1::Builder::new();
    // one byte more than a whole head may have: what is longer is refused before its end
    http.timer(TokioTimer::new()).header_read_timeout(limits.head_time).max_header_size(MAX_HEAD + 1);
    http.max_buf_size(2 * MAX_HEAD);
    let mut stop = std::pin::pin!(stop);
    loop {
        let accept = async {
            let permit = connections.clone().acquire_owned().await;
            (listener.accept().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            accepted = accept => accepted,
            () = &mut stop => break,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        // tokens are small and must not wait for each other
        let _ = stream.set_nodelay(true);
        let stream = TokioIo::new(Timed::new(stream, limits.write_time));
        let connection = http.serve_connection(stream, TowerToHyperService::new(router.clone()));
        let watched = graceful.watch(connection);
        tokio::spawn(async move {
            // a client that breaks off is no fault of the server
            let _ = watched.await;
            drop(permit);
        });
    }
    drop(listener);
    graceful.shutdown().await;
    Ok(())
}

/// Refuses a head of more than [`MAX_HEAD`] bytes that came in one piece, which is parsed before its length is seen.
async fn bound_head(request: Request, next: Next) -> Response {
    let uri = request.uri();
    let target = uri.path_and_query().map_or(1, |target| target.as_str().len());
    let authority = uri.authority().map_or(0, |authority| authority.as_str().len());
    let scheme = uri.scheme_str().map_or(0, |scheme| scheme.len() + "://".len());
    let line = request.method().as_str().len() + scheme + authority + target + "  HTTP/1.1\r\n".len();
    let fields = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len());
    let head = line + fields.sum::<usize>() + "\r\n".len();
    match head > MAX_HEAD {
        true => {
            let why = format!("the head of the request has {head} bytes, expected at most {MAX_HEAD}");
            ApiError::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, why).into()
        }
        false => next.run(request).await,
    }
}
