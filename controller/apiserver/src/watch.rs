//! Watch: the changes of one kind after a revision, as a stream that never skips and never repeats.
//!
//! Opened by `http::dispatch`. Invariant: applying the stream to a list of its starting revision gives, at any later
//! revision, what a list of that revision shows. A watcher holds no queue: it reads the shared history at its own pace,
//! and one that falls out of the history is told so (410) and ends.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch::Receiver;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::read::{ListOptions, list, shown};
use crate::resource::Resource;
use crate::selector::Selector;
use crate::status::{Refusal, Result};
use crate::store::{Event, Object, Store};

/// What a watch is asked to do.
#[derive(Debug, Clone, Default)]
pub(crate) struct WatchOptions {
    pub(crate) namespace: Option<String>,
    pub(crate) selector: Selector,
    /// None or 0: begin with what there is.
    pub(crate) revision: Option<u64>,
    pub(crate) bookmarks: bool,
    /// Begin with what there is, and mark the end of it by a bookmark.
    pub(crate) initial_events: bool,
    pub(crate) timeout: Duration,
}

/// One element of the stream.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Notice {
    Added(Arc<Value>),
    Modified(Arc<Value>),
    Deleted(Arc<Value>),
    /// Everything up to this revision was sent; `initial` ends the initial events.
    Bookmark {
        revision: u64,
        initial: bool,
    },
    /// The stream ends.
    Error(Value),
}

pub(crate) struct Watch {
    store: Arc<dyn Store>,
    resource: &'static Resource,
    bucket: String,
    options: WatchOptions,
    newest: Receiver<u64>,
    cursor: u64,
    /// Sent before anything else.
    first: Vec<Notice>,
    bookmark_every: Duration,
    next_bookmark: Instant,
    deadline: Instant,
    stop: CancellationToken,
    ended: bool,
}

impl Watch {
    pub(crate) fn open(
        store: Arc<dyn Store>,
        resource: &'static Resource,
        options: WatchOptions,
        bookmark_every: Duration,
        stop: CancellationToken,
    ) -> Result<Self> {
        let newest = store.follow();
        let bucket = resource.bucket();
        let (cursor, mut first) = match options.revision.filter(|revision| *revision > 0) {
            Some(revision) if !options.initial_events => {
                // Says 410 or 504 at once rather than inside the stream.
                store.changes(&bucket, revision).map_err(|error| Refusal::storage(&error))?;
                (revision, Vec::new())
            }
            revision => {
                let page = list(
                    &*store,
                    resource,
                    &ListOptions {
                        namespace: options.namespace.clone(),
                        selector: options.selector.clone(),
                        revision,
                        ..ListOptions::default()
                    },
                )?;
                (page.revision, page.objects.into_iter().map(Notice::Added).collect())
            }
        };
        if options.initial_events && options.bookmarks {
            first.push(Notice::Bookmark { revision: cursor, initial: true });
        }
        let now = Instant::now();
        Ok(Self {
            deadline: now + options.timeout,
            next_bookmark: now + bookmark_every,
            store,
            resource,
            bucket,
            options,
            newest,
            cursor,
            first,
            bookmark_every,
            stop,
            ended: false,
        })
    }

    /// The next notices, at least one; None when the watch is over.
    pub(crate) async fn next(&mut self) -> Option<Vec<Notice>> {
        if self.ended {
            return None;
        }
        if !self.first.is_empty() {
            return Some(std::mem::take(&mut self.first));
        }
        loop {
            // Seen before reading, so that a change in between wakes us.
            self.newest.mark_unchanged();
            let notices = self.new_notices();
            if !notices.is_empty() {
                return Some(notices);
            }
            tokio::select! {
                () = self.stop.cancelled() => return None,
                () = sleep_until(self.deadline) => return self.close(),
                () = sleep_until(self.next_bookmark), if self.options.bookmarks => {
                    self.next_bookmark += self.bookmark_every;
                    return Some(vec![Notice::Bookmark { revision: self.cursor, initial: false }]);
                }
                changed = self.newest.changed() => changed.ok()?,
            }
        }
    }

    /// A last bookmark spares the client a long replay when it comes back.
    fn close(&mut self) -> Option<Vec<Notice>> {
        self.ended = true;
        self.options.bookmarks.then(|| vec![Notice::Bookmark { revision: self.cursor, initial: false }])
    }

    fn new_notices(&mut self) -> Vec<Notice> {
        match self.store.changes(&self.bucket, self.cursor) {
            Ok(changes) => {
                self.cursor = changes.revision;
                changes.events.iter().filter_map(|event| self.notice(event)).collect()
            }
            Err(error) => {
                self.ended = true;
                vec![Notice::Error(Refusal::storage(&error).to_value())]
            }
        }
    }

    /// The change as seen through the selectors: entering is an addition, leaving a deletion.
    fn notice(&self, event: &Event) -> Option<Notice> {
        if self.options.namespace.as_ref().is_some_and(|only| *only != event.key.namespace) {
            return None;
        }
        let visible = |object: &Option<Object>| {
            let value = shown(self.resource, Arc::clone(&object.as_ref()?.value));
            self.options.selector.matches(&value).then_some(value)
        };
        match (visible(&event.old), visible(&event.new)) {
            (None, Some(new)) => Some(Notice::Added(new)),
            (Some(_), Some(new)) => Some(Notice::Modified(new)),
            (Some(old), None) => {
                let mut last = Value::clone(&old);
                last["metadata"]["resourceVersion"] = json!(event.revision.to_string());
                Some(Notice::Deleted(Arc::new(last)))
            }
            (None, None) => None,
        }
    }
}
