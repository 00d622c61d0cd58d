//! A container's log for a client: the files that the shim writes, cut as the client asks, and followed while the container runs.

use std::{path::PathBuf, sync::Arc, time::Duration};

use axum::body::Body;
use bytes::Bytes;
use futures::stream;
use jiff::{SignedDuration, Timestamp};
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use crate::{
    base::clock,
    meta::options::Query,
    node::{agent::Agent, runtime::Container},
};

/// How often a followed log is looked at.
const FOLLOW_EVERY: Duration = Duration::from_millis(100);
const CHUNK: usize = 64 << 10;

#[derive(Clone, Debug, Default)]
pub struct Options {
    follows: bool,
    has_timestamps: bool,
    tail: Option<usize>,
    since: Option<Timestamp>,
    limit: Option<usize>,
}

impl Options {
    pub fn from_query(query: &Query) -> Result<Self, String> {
        let number = |name: &str| query.number::<i64>(name).map_err(|it| it.message).map(|it| it.and_then(|it| usize::try_from(it).ok()));
        let seconds = query.number::<i64>("sinceSeconds").map_err(|it| it.message)?;
        let since = query.get("sinceTime").and_then(|it| it.parse().ok());
        Ok(Self {
            follows: query.flag("follow").unwrap_or(false),
            has_timestamps: query.flag("timestamps").unwrap_or(false),
            tail: number("tailLines")?,
            since: seconds.map(|it| clock::now() - SignedDuration::from_secs(it)).or(since),
            limit: number("limitBytes")?,
        })
    }

    /// A record of the log as the client sees it; `None` where it is too old.
    fn line<'a>(&self, record: &'a str) -> Option<(&'a str, String)> {
        let mut parts = record.splitn(4, ' ');
        let (time, _stream, tag, text) = (parts.next()?, parts.next()?, parts.next()?, parts.next().unwrap_or_default());
        if let Some(since) = self.since
            && time.parse::<Timestamp>().is_ok_and(|it| it < since)
        {
            return None;
        }
        let stamp = if self.has_timestamps { format!("{time} ") } else { String::new() };
        Some((time, format!("{stamp}{text}{}", if tag == "P" { "" } else { "\n" })))
    }
}

struct Reader {
    agent: Arc<Agent>,
    container: Container,
    path: PathBuf,
    options: Options,
    offset: u64,
    /// The start of a record whose end is not written yet.
    partial: String,
    sent: usize,
    is_first: bool,
    is_over: bool,
}

/// The log as a body.
pub fn stream(agent: Arc<Agent>, container: Container, options: Options) -> Body {
    let path = container.spec.log.clone();
    let reader = Reader { agent, container, path, options, offset: 0, partial: String::new(), sent: 0, is_first: true, is_over: false };
    Body::from_stream(stream::unfold(reader, |mut reader| async move {
        let chunk = reader.next().await?;
        Some((Ok::<_, std::io::Error>(chunk), reader))
    }))
}

impl Reader {
    async fn next(&mut self) -> Option<Bytes> {
        while !self.is_over {
            let was_running = self.agent.runtime.container(&self.container.id).is_some_and(|it| it.is_running());
            let text = self.read().await;
            let is_empty = text.is_empty();
            let mut lines: Vec<String> = text.lines().filter_map(|it| Some(self.options.line(it)?.1)).collect();
            if let (true, Some(tail)) = (self.is_first, self.options.tail) {
                lines.drain(..lines.len().saturating_sub(tail));
            }
            self.is_first = false;
            // Only a container that had ended before the last read has nothing more to say.
            self.is_over = !self.options.follows || (is_empty && !was_running);
            let chunk = self.limited(lines.concat());
            if !chunk.is_empty() {
                return Some(chunk);
            }
            if !self.is_over {
                tokio::time::sleep(FOLLOW_EVERY).await;
            }
        }
        None
    }

    fn limited(&mut self, mut text: String) -> Bytes {
        if let Some(limit) = self.options.limit {
            let left = limit.saturating_sub(self.sent);
            if text.len() >= left {
                self.is_over = true;
                let end = (0..=left).rev().find(|it| text.is_char_boundary(*it)).unwrap_or(0);
                text.truncate(end);
            }
        }
        self.sent += text.len();
        text.into()
    }

    /// Whole records written since the last read.
    async fn read(&mut self) -> String {
        let Ok(mut file) = tokio::fs::File::open(&self.path).await else { return String::new() };
        let length = file.metadata().await.map_or(0, |it| it.len());
        if length < self.offset {
            // The log was put aside and begins anew.
            self.offset = 0;
            self.partial.clear();
        }
        if file.seek(std::io::SeekFrom::Start(self.offset)).await.is_err() {
            return String::new();
        }
        let mut bytes = Vec::with_capacity(CHUNK);
        if file.read_to_end(&mut bytes).await.is_err() {
            return String::new();
        }
        self.offset += bytes.len() as u64;
        self.partial.push_str(&String::from_utf8_lossy(&bytes));
        let end = self.partial.rfind('\n').map_or(0, |it| it + 1);
        let rest = self.partial.split_off(end);
        std::mem::replace(&mut self.partial, rest)
    }
}
