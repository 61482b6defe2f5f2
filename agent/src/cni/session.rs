//! One conversation with a plugin. The connection is a lease: a reservation it made and did not turn into an attachment
//! is given back when it ends, however it ends.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use quilla_cni_protocol::{
    Attachment, CniError, ErrorCode, MAX_MESSAGE_BYTES, PROTOCOL_VERSION, PodRef, Request, RequestEnvelope,
    Response, Wanted, decode, encode, failpoint,
};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::cni::lock::AttachmentLock;
use crate::cni::server::Shared;
use crate::cni::store::{Entry, NewAttachment, Store};
use crate::cni::{AttachError, AttachedEndpoint, Attacher, StoreError};

/// How long a plugin may be silent between two requests, its netlink work included.
const SILENCE: Duration = Duration::from_secs(15);

/// The interface that kubelet and runtimes call a Pod's own.
const FIRST_INTERFACE: &str = "eth0";

/// How long a request waits for another plugin that works on the same attachment: less than the plugin's own patience.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// Serves one connection to its end. When the agent drains, a plugin in the middle of an ADD may finish it.
pub(super) async fn serve<A: Attacher>(shared: Arc<Shared<A>>, stream: UnixStream, drain: CancellationToken) {
    let mut session = Session { shared, lock: None, reserved: None, attached: false };
    let mut stream = BufReader::new(stream);
    while let Some(line) = session.next_line(&mut stream, &drain).await {
        let response = match decode::<RequestEnvelope>(&line) {
            Ok(envelope) if envelope.version == PROTOCOL_VERSION => {
                session.answer_to(envelope.request, &mut stream).await
            }
            Ok(envelope) => {
                let details = format!("plugin speaks {}, agent {PROTOCOL_VERSION}", envelope.version);
                Err(CniError::new(ErrorCode::INCOMPATIBLE_VERSION, "agent protocol version", details))
            }
            Err(error) => {
                let details = describe(&error);
                Err(CniError::new(ErrorCode::DECODE_FAILURE, "agent cannot read the request", details))
            }
        };
        let response = response.unwrap_or_else(|error| {
            tracing::warn!(error = %error, "cni request failed");
            Response::Error(error)
        });
        if write(&mut stream, &response).await.is_err() {
            break;
        }
        session.answered();
    }
    session.end().await;
}

/// A complete line; `None` at the end of the conversation, or when the plugin is silent or says too much.
async fn read_line(stream: &mut BufReader<UnixStream>) -> Option<Vec<u8>> {
    let mut line = Vec::new();
    let mut limited = stream.take(MAX_MESSAGE_BYTES as u64);
    timeout(SILENCE, limited.read_until(b'\n', &mut line)).await.ok()?.ok()?;
    (line.last() == Some(&b'\n')).then_some(line)
}

async fn write(stream: &mut BufReader<UnixStream>, response: &Response) -> std::io::Result<()> {
    failpoint!(Answering, std::io::Error::other);
    let line = encode(response).map_err(std::io::Error::other)?;
    timeout(SILENCE, stream.get_mut().write_all(&line)).await?
}

/// Waits until the plugin has closed the connection; for ever if it says something instead.
async fn hung_up(stream: &mut BufReader<UnixStream>) {
    if let Ok([_, ..]) = stream.fill_buf().await {
        std::future::pending::<()>().await;
    }
}

struct Session<A> {
    shared: Arc<Shared<A>>,
    lock: Option<AttachmentLock>,
    /// A reservation of this connection of whose attaching the plugin does not know yet.
    reserved: Option<Attachment>,
    /// Whether it is attached all the same.
    attached: bool,
}

impl<A: Attacher> Session<A> {
    async fn next_line(
        &self,
        stream: &mut BufReader<UnixStream>,
        drain: &CancellationToken,
    ) -> Option<Vec<u8>> {
        if self.reserved.is_some() {
            return read_line(stream).await;
        }
        drain.run_until_cancelled(read_line(stream)).await.flatten()
    }

    /// Answers, and knows meanwhile whether anybody listens. What has begun is carried out, because half of it would be
    /// left.
    async fn answer_to(
        &mut self,
        request: Request,
        stream: &mut BufReader<UnixStream>,
    ) -> Result<Response, CniError> {
        let abandoned = CancellationToken::new();
        let answer = self.answer(request, &abandoned);
        tokio::pin!(answer);
        tokio::select! {
            biased;
            response = &mut answer => return response,
            () = hung_up(stream) => abandoned.cancel(),
        }
        answer.await
    }

    /// The plugin has its answer: what it knows to be attached stays.
    fn answered(&mut self) {
        if std::mem::take(&mut self.attached) {
            self.reserved = None;
        }
    }

    async fn answer(
        &mut self,
        request: Request,
        abandoned: &CancellationToken,
    ) -> Result<Response, CniError> {
        match request {
            Request::Reserve { attachment, network, netns, pod, wanted } => {
                self.lock(&attachment).await?;
                failpoint!(Reserving);
                self.shared.consume_record(&attachment).await?;
                let own_wish = self.own_wish(&attachment, pod.as_ref(), &wanted).await;
                let wanted = *wanted;
                let mtu = self.shared.mtu();
                self.reserve(NewAttachment { attachment, network, netns, pod, wanted, mtu, own_wish }).await
            }
            Request::Attach { attachment, host_ifindex, netns_cookie } => {
                self.lock(&attachment).await?;
                failpoint!(Attaching);
                self.attach(&attachment, host_ifindex, netns_cookie, abandoned).await
            }
            Request::Release { attachment } => {
                self.lock(&attachment).await?;
                failpoint!(Releasing);
                self.shared.release(&attachment).await?;
                self.shared.forget_record(&attachment)?;
                self.reserved = None;
                Ok(Response::Done)
            }
            Request::Lock { attachment } => self.lock(&attachment).await.map(|()| Response::Done),
            Request::Check { attachment } => {
                self.lock(&attachment).await?;
                self.shared.consume_record(&attachment).await?;
                self.check(&attachment).await
            }
            Request::List { network } => {
                let endpoints = self.shared.with_store(move |store| store.list(&network)).await;
                Ok(Response::Endpoints { endpoints })
            }
            Request::Status => {
                self.shared.attacher.status().map_err(|error| trouble(&error))?;
                self.shared.with_store(Store::ready).await.map_err(|error| refusal(&error))?;
                Ok(Response::Done)
            }
        }
    }

    /// Takes the lock of an attachment, giving up the one of another.
    async fn lock(&mut self, attachment: &Attachment) -> Result<(), CniError> {
        if self.lock.as_ref().is_some_and(|lock| lock.is_for(attachment)) {
            return Ok(());
        }
        self.end().await;
        self.lock = self.shared.locks.acquire(attachment, LOCK_PATIENCE).await;
        if self.lock.is_some() {
            return Ok(());
        }
        Err(CniError::try_again("attachment is busy", format!("another plugin works on {attachment}")))
    }

    /// What the Pod asks for itself, of its first interface and of addresses that are ours to give.
    async fn own_wish(
        &self,
        attachment: &Attachment,
        pod: Option<&PodRef>,
        wanted: &Wanted,
    ) -> Result<Vec<IpAddr>, AttachError> {
        match pod {
            Some(pod) if attachment.ifname == FIRST_INTERFACE && wanted.given.is_none() => {
                self.shared.attacher.wished_addresses(pod).await
            }
            _ => Ok(Vec::new()),
        }
    }

    async fn reserve(&mut self, new: NewAttachment) -> Result<Response, CniError> {
        let (attachment, mtu) = (new.attachment.clone(), new.mtu);
        let asking =
            new.own_wish.as_ref().is_ok_and(|own| !own.is_empty()).then(|| new.pod.clone()).flatten();
        let reserve = move |store: &mut Store| {
            let entry = store.reserve(new)?;
            let reservation = store.reservation(entry.endpoint(), mtu)?;
            let attached = matches!(entry, Entry::Attached(_));
            Ok(if attached { Response::Attached(reservation) } else { Response::Reserved(reservation) })
        };
        let reserved = self.shared.with_store(reserve).await;
        let response = reserved.map_err(|error: StoreError| {
            if let Some(pod) = asking.filter(|_| error.is_about_an_address()) {
                self.shared.attacher.wish_refused(&pod, &error.to_string());
            }
            refusal(&error)
        })?;
        if matches!(response, Response::Reserved(_)) {
            self.reserved = Some(attachment);
        }
        Ok(response)
    }

    async fn attach(
        &mut self,
        attachment: &Attachment,
        host_ifindex: u32,
        netns_cookie: u64,
        abandoned: &CancellationToken,
    ) -> Result<Response, CniError> {
        let key = attachment.clone();
        let candidate = move |store: &mut Store| store.candidate(&key, host_ifindex, netns_cookie);
        let endpoint = self.shared.with_store(candidate).await.map_err(|error| refusal(&error))?;
        // The data path first: what the journal calls attached must be attached.
        let attached = match self.attach_effective(&endpoint, abandoned).await {
            Ok(()) => self.shared.commit(endpoint.clone()).await.map_err(|error| refusal(&error)),
            Err(error) => Err(error),
        };
        if let Err(error) = attached {
            if let Err(error) = self.shared.attacher.detach(&endpoint).await {
                tracing::warn!(attachment = %attachment, error = %describe(&error), "undo of a failed attach failed");
            }
            return Err(error);
        }
        self.attached = true;
        tracing::info!(
            pod.namespace = endpoint.pod_namespace,
            pod.name = endpoint.pod_name,
            ifname = endpoint.host_ifname,
            "endpoint attached"
        );
        Ok(Response::Done)
    }

    async fn attach_effective(
        &self,
        endpoint: &AttachedEndpoint,
        abandoned: &CancellationToken,
    ) -> Result<(), CniError> {
        let refusal = |error: AttachError| attach_refusal("attach endpoint", &error);
        self.shared.attacher.attach(endpoint, abandoned).await.map_err(refusal)?;
        failpoint!(EndpointEffective);
        if abandoned.is_cancelled() { Err(refusal(AttachError::Abandoned)) } else { Ok(()) }
    }

    async fn check(&self, attachment: &Attachment) -> Result<Response, CniError> {
        let (key, mtu) = (attachment.clone(), self.shared.mtu());
        let known = self
            .shared
            .with_store(move |store| match store.entry(&key) {
                Some(Entry::Attached(endpoint)) => {
                    store.reservation(&endpoint, mtu).map(|reservation| Some((reservation, endpoint)))
                }
                _ => Ok(None),
            })
            .await
            .map_err(|error| refusal(&error))?;
        let Some((reservation, endpoint)) = known else {
            let details = format!("the agent does not know {attachment}");
            return Err(CniError::new(ErrorCode::CHECK_FAILED, "unknown attachment", details));
        };
        match self.shared.attacher.check(&endpoint).await {
            Ok(()) => Ok(Response::Attached(reservation)),
            Err(error @ (AttachError::NotReady { .. } | AttachError::Abandoned)) => {
                Err(attach_refusal("check endpoint", &error))
            }
            Err(error) => {
                Err(CniError::new(ErrorCode::CHECK_FAILED, "endpoint is not effective", describe(&error)))
            }
        }
    }

    /// Gives back what this connection reserved, unless the plugin knows that it is attached.
    async fn end(&mut self) {
        self.attached = false;
        if let Some(attachment) = self.reserved.take() {
            tracing::info!(attachment = %attachment, "reservation given back");
            if let Err(error) = self.shared.release(&attachment).await {
                tracing::warn!(attachment = %attachment, error = %error, "give back reservation");
            }
        }
        self.lock = None;
    }
}

/// A store's refusal in the runtime's terms. What may pass is told as such.
pub(super) fn refusal(error: &StoreError) -> CniError {
    let details = describe(error);
    match error {
        StoreError::Addresses { .. } | StoreError::AddressResting { .. } => {
            CniError::try_again("no address", details)
        }
        StoreError::Wish(error) => attach_refusal("read what the pod asks for", error),
        StoreError::Io { .. } | StoreError::Journal(_) => CniError::try_again("journal", details),
        StoreError::InUse { .. }
        | StoreError::NotReserved { .. }
        | StoreError::NameTaken { .. }
        | StoreError::AddressTaken { .. }
        | StoreError::AddressUnusable { .. }
        | StoreError::PortTaken { .. } => CniError::new(ErrorCode::AGENT_REFUSED, "agent refused", details),
    }
}

/// What keeps the data path from its work, in the words of STATUS: it may concern the Pods that run, too.
fn trouble(error: &AttachError) -> CniError {
    match error {
        AttachError::NotReady { reason } => CniError::new(ErrorCode::NOT_AVAILABLE, "data path", reason),
        AttachError::Abandoned | AttachError::Failed { .. } => {
            CniError::new(ErrorCode::LIMITED_CONNECTIVITY, "data path", describe(error))
        }
    }
}

/// The data path's refusal in the runtime's terms.
pub(super) fn attach_refusal(operation: &'static str, error: &AttachError) -> CniError {
    match error {
        AttachError::NotReady { reason } => CniError::try_again(operation, reason),
        AttachError::Abandoned => CniError::try_again(operation, error.to_string()),
        AttachError::Failed { .. } => CniError::new(ErrorCode::AGENT_REFUSED, operation, describe(error)),
    }
}

/// An error with what caused it, in one line.
pub(super) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
