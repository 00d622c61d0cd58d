//! The flight recorder (`up --trace FILE`): one line of JSON for every request, in a file that a person can query.
//!
//! A line is written when its answer has been sent whole, so that a watch stands there when it ends. Requests never wait for the disk.

use std::{
    future::Future,
    path::Path,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::Bytes;
use http::header::USER_AGENT;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use serde_json::json;
use tokio::{
    fs::File,
    io::{AsyncWriteExt, BufWriter},
    sync::mpsc,
};

use super::{Body, BodyError, Request, Response, identity::Attributes};
use crate::{
    base::{Tasks, clock},
    meta::{Value, options::Query},
};

/// Lines that may wait for the disk (some 2 MB). Further ones are dropped, and the next line that is written says how many.
const WAITING_MAX: usize = 8 << 10;

/// Where requests are recorded.
pub struct Trace {
    lines: mpsc::Sender<String>,
    dropped: AtomicU64,
}

impl Trace {
    /// Appends to the file at `path` until `tasks` stop.
    pub async fn open(path: &Path, tasks: &Tasks) -> std::io::Result<Arc<Self>> {
        let file = File::options().create(true).append(true).open(path).await?;
        let (lines, waiting) = mpsc::channel(WAITING_MAX);
        let group = tasks.clone();
        tasks.spawn_finishing("trace", async move {
            if let Err(error) = write(waiting, BufWriter::new(file), group).await {
                tracing::error!(%error, "requests are no longer recorded");
            }
        });
        Ok(Arc::new(Self { lines, dropped: AtomicU64::new(0) }))
    }

    /// Has `respond` answer the request, and records it when the answer has ended.
    pub async fn recorded<F>(self: &Arc<Self>, mut request: Request, respond: impl FnOnce(Request) -> F) -> Response
    where
        F: Future<Output = Response>,
    {
        let mut record = Record::of(&request, self.clone());
        request.extensions_mut().insert(record.caller.clone());
        let received = record.received.clone();
        let response = respond(request.map(|body| Body::new(Counted { body, bytes: received, record: None }))).await;
        record.answered(&response);
        response.map(|body| Body::new(Counted { body, bytes: record.sent.clone(), record: Some(record) }))
    }

    fn write(&self, mut line: Value) {
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            line["dropped"] = json!(dropped);
        }
        if self.lines.try_send(format!("{line}\n")).is_err() {
            self.dropped.fetch_add(dropped + 1, Ordering::Relaxed);
        }
    }
}

/// The file is up to date whenever nothing waits.
async fn write(mut waiting: mpsc::Receiver<String>, mut file: BufWriter<File>, tasks: Tasks) -> std::io::Result<()> {
    loop {
        let line = match waiting.try_recv() {
            Ok(line) => line,
            Err(_) => {
                file.flush().await?;
                tokio::select! {
                    // What waits is written even while the group stops.
                    biased;
                    line = waiting.recv() => match line { Some(line) => line, None => return Ok(()) },
                    () = tasks.stopping() => return Ok(()),
                }
            }
        };
        file.write_all(line.as_bytes()).await?;
    }
}

/// Whose request it is: authentication says so on its way.
#[derive(Clone, Default)]
pub struct Caller(Arc<OnceLock<String>>);

impl Caller {
    /// Notes the user, if the request is being recorded.
    pub fn note(request: &Request, user: &str) {
        if let Some(Self(caller)) = request.extensions().get() {
            let _ = caller.set(user.to_owned());
        }
    }
}

/// What is known of a request. Dropped with the body of its answer, it becomes a line.
struct Record {
    trace: Arc<Trace>,
    began: Instant,
    line: Value,
    caller: Caller,
    received: Arc<AtomicU64>,
    sent: Arc<AtomicU64>,
}

/// What the server says went wrong on its side; an extension of the answer.
#[derive(Clone)]
pub struct Why(pub String);

impl Record {
    fn of(request: &Request, trace: Arc<Trace>) -> Self {
        let uri = request.uri();
        let query = Query::parse(uri.query().unwrap_or_default());
        let agent = request.headers().get(USER_AGENT).and_then(|it| it.to_str().ok()).unwrap_or_default();
        let path = uri.path_and_query().map(ToString::to_string).unwrap_or_default();
        let verb = Attributes::parse(request.method(), uri.path(), &query).verb;
        // A client that goes away before the answer gets no status.
        let line = json!({"time": clock::rfc3339_micro(clock::now()), "verb": verb, "path": path, "agent": agent, "status": null, "milliseconds": null});
        Self { trace, began: Instant::now(), line, caller: Caller::default(), received: Arc::default(), sent: Arc::default() }
    }

    fn answered(&mut self, response: &Response) {
        self.line["status"] = response.status().as_u16().into();
        self.line["milliseconds"] = self.milliseconds().into();
        if let Some(Why(why)) = response.extensions().get() {
            self.line["message"] = why.as_str().into();
        }
    }

    fn milliseconds(&self) -> f64 {
        (self.began.elapsed().as_secs_f64() * 1e5).round() / 100.0
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let mut line = self.line.take();
        line["user"] = json!(self.caller.0.get());
        line["open_milliseconds"] = self.milliseconds().into();
        line["request_bytes"] = self.received.load(Ordering::Relaxed).into();
        line["response_bytes"] = self.sent.load(Ordering::Relaxed).into();
        self.trace.write(line);
    }
}

/// A body whose bytes are counted as they pass.
struct Counted {
    body: Body,
    bytes: Arc<AtomicU64>,
    /// Ends with an answer's body.
    #[expect(dead_code, reason = "held for its end")]
    record: Option<Record>,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame {
            self.bytes.fetch_add(frame.data_ref().map_or(0, Bytes::len) as u64, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::api::body;

    #[tokio::test]
    async fn every_request_has_a_line_when_its_answer_has_ended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace");
        let tasks = Tasks::new();
        let trace = Trace::open(&path, &tasks).await.unwrap();

        let request = |method: &str, uri: &str| {
            http::Request::builder().method(method).uri(uri).header("user-agent", "kubectl/v1.36").body(body::full("{}")).unwrap()
        };
        let answer = async |request: Request| {
            Caller::note(&request, "admin");
            body::read(request.into_body()).await.unwrap();
            body::text(201, "created")
        };
        let response = trace.recorded(request("POST", "/api/v1/namespaces/default/pods?dryRun=All"), answer).await;
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "", "the answer has not been read");
        assert_eq!(body::read(response.into_body()).await.unwrap(), "created");
        // A client that goes away before it is answered.
        let never = trace.recorded(request("GET", "/api/v1/pods?watch=1"), |_| std::future::pending());
        assert!(tokio::time::timeout(Duration::from_millis(1), never).await.is_err());

        assert!(tasks.stop(Duration::from_secs(10)).await);
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<Value> = text.lines().map(|it| serde_json::from_str(it).unwrap()).collect();
        let told = |at: usize, names: &[&str]| names.iter().map(|it| lines[at][it].clone()).collect::<serde_json::Value>();
        let names = ["verb", "path", "agent", "user", "status", "request_bytes", "response_bytes"];
        assert_eq!(told(0, &names), json!(["create", "/api/v1/namespaces/default/pods?dryRun=All", "kubectl/v1.36", "admin", 201, 2, 7]));
        assert_eq!(told(1, &names), json!(["watch", "/api/v1/pods?watch=1", "kubectl/v1.36", null, null, 0, 0]));
        assert!(lines[0]["milliseconds"].is_number() && lines[1]["milliseconds"].is_null());
    }
}
