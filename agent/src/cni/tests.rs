//! The conversation with a plugin that misbehaves or vanishes, over a real socket. What a plugin that behaves gets is
//! tested with the real one in `tests/cni`.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use quilla_cni_protocol::{
    Attachment, ErrorCode, Lease, MAX_MESSAGE_BYTES, PodRef, ReleaseRecord, Request, RequestEnvelope,
    Response, decode, encode,
};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::cni::{AttachError, AttachedEndpoint, Attacher, CniServer, CniServerConfig, Pools, Releaser};

/// A data path that agrees to everything, to this container only when its plugin has gone.
#[derive(Debug, Default)]
struct Agreeable {
    begun: Notify,
}

const SLOW: &str = "slow";

impl Attacher for Agreeable {
    async fn attach(
        &self,
        endpoint: &AttachedEndpoint,
        abandoned: &CancellationToken,
    ) -> Result<(), AttachError> {
        if endpoint.container_id == SLOW {
            self.begun.notify_one();
            abandoned.cancelled().await;
        }
        Ok(())
    }

    async fn detach(&self, _: &AttachedEndpoint) -> Result<(), AttachError> {
        Ok(())
    }

    async fn routes(&self) -> Result<Vec<(String, IpAddr)>, AttachError> {
        Ok(Vec::new())
    }

    async fn wished_addresses(&self, _: &PodRef) -> Result<Vec<IpAddr>, AttachError> {
        Ok(Vec::new())
    }

    fn wish_refused(&self, _: &PodRef, _: &str) {}

    fn status(&self) -> Result<(), AttachError> {
        Ok(())
    }

    async fn check(&self, _: &AttachedEndpoint) -> Result<(), AttachError> {
        Ok(())
    }
}

async fn start(dir: &Path) -> CniServer<Agreeable> {
    let pools = Pools { ipv4: vec!["10.0.0.0/24".parse().expect("valid")], ipv6: vec![] };
    let config = CniServerConfig {
        socket: dir.join("run/cni.sock"),
        state_dir: dir.join("state"),
        record_dir: dir.join("records"),
        pools: watch::channel(Some(pools)).1,
        mtu: watch::channel(1450).1,
        cool_down: Duration::ZERO,
        record_interval: Duration::from_millis(20),
    };
    CniServer::start(config, Agreeable::default()).await.expect("starts")
}

struct Plugin(BufReader<UnixStream>);

impl Plugin {
    async fn connect(dir: &Path) -> Self {
        Self(BufReader::new(UnixStream::connect(dir.join("run/cni.sock")).await.expect("connects")))
    }

    async fn say(&mut self, bytes: &[u8]) -> Option<Response> {
        self.0.get_mut().write_all(bytes).await.expect("writes");
        self.hear().await
    }

    async fn hear(&mut self) -> Option<Response> {
        let mut line = Vec::new();
        self.0.read_until(b'\n', &mut line).await.expect("reads");
        (!line.is_empty()).then(|| decode(&line).expect("is a response"))
    }

    async fn ask(&mut self, request: Request) -> Response {
        let line = encode(&RequestEnvelope::from(request)).expect("encodes");
        self.say(&line).await.expect("answers")
    }

    /// The IPv4 address reserved for a container.
    async fn reserve(&mut self, container_id: &str) -> String {
        let request = Request::Reserve {
            attachment: attachment(container_id),
            network: "n".into(),
            netns: "/ns".into(),
            pod: None,
            wanted: Box::default(),
        };
        match self.ask(request).await {
            Response::Reserved(reservation) | Response::Attached(reservation) => {
                let [Lease { address, .. }] = reservation.leases.as_slice() else {
                    panic!("{reservation:?}")
                };
                address.to_string()
            }
            other => panic!("{other:?}"),
        }
    }

    async fn attach(&mut self, container_id: &str) -> Response {
        let attachment = attachment(container_id);
        self.ask(Request::Attach { attachment, host_ifindex: 7, netns_cookie: 9 }).await
    }
}

fn attachment(container_id: &str) -> Attachment {
    Attachment { container_id: container_id.into(), ifname: "eth0".into() }
}

fn code(response: &Response) -> Option<ErrorCode> {
    match response {
        Response::Error(error) => Some(error.code),
        _ => None,
    }
}

/// A plugin that dies between its two requests leaves nothing: the next one to ask has a fresh reservation, with an
/// address that had its turn later.
#[tokio::test]
async fn a_reservation_ends_with_its_connection() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let server = start(dir.path()).await;
    let mut plugin = Plugin::connect(dir.path()).await;
    assert_eq!(plugin.reserve("c").await, "10.0.0.2");
    drop(plugin);
    // The lock is free only once the reservation is given back.
    let mut plugin = Plugin::connect(dir.path()).await;
    assert_eq!(plugin.reserve("c").await, "10.0.0.3");
    assert_eq!(plugin.attach("c").await, Response::Done);
    drop(plugin);
    assert_eq!(Plugin::connect(dir.path()).await.reserve("c").await, "10.0.0.3", "attached endpoints stay");
    assert_eq!(server.endpoints().await.len(), 1);
    server.shutdown().await;
    assert!(!dir.path().join("run/cni.sock").exists());
}

/// CNI-15: what is asked for a plugin that dies meanwhile is undone, however well it went.
#[tokio::test]
async fn an_attach_ends_with_its_connection() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let server = start(dir.path()).await;
    let mut plugin = Plugin::connect(dir.path()).await;
    assert_eq!(plugin.reserve(SLOW).await, "10.0.0.2");
    tokio::select! {
        answer = plugin.attach(SLOW) => panic!("answered: {answer:?}"),
        () = server.attacher().begun.notified() => {}
    }
    drop(plugin);
    let mut plugin = Plugin::connect(dir.path()).await;
    assert_eq!(plugin.reserve(SLOW).await, "10.0.0.3", "the address of the dead one is given back");
    assert!(server.endpoints().await.is_empty());
}

/// CNI-15: what is attached and cannot be told is undone.
#[tokio::test]
async fn an_attach_that_nobody_hears_of_is_undone() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let server = start(dir.path()).await;
    let mut plugin = Plugin::connect(dir.path()).await;
    assert_eq!(plugin.reserve("c").await, "10.0.0.2");
    // It speaks still, and hears nothing.
    rustix::net::shutdown(plugin.0.get_ref(), rustix::net::Shutdown::Read).expect("shuts");
    let attach = Request::Attach { attachment: attachment("c"), host_ifindex: 7, netns_cookie: 9 };
    let line = encode(&RequestEnvelope::from(attach)).expect("encodes");
    plugin.0.get_mut().write_all(&line).await.expect("writes");
    let mut next = Plugin::connect(dir.path()).await;
    assert_eq!(next.ask(Request::Lock { attachment: attachment("c") }).await, Response::Done);
    assert!(server.endpoints().await.is_empty());
    drop(plugin);
    assert_eq!(next.reserve("c").await, "10.0.0.3");
}

/// CNI-30: plugins on one attachment take turns; others do not wait.
#[tokio::test]
async fn one_plugin_per_attachment() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let server = start(dir.path()).await;
    let mut first = Plugin::connect(dir.path()).await;
    first.reserve("c").await;
    let mut second = Plugin::connect(dir.path()).await;
    let mut third = Plugin::connect(dir.path()).await;
    {
        let release = second.ask(Request::Release { attachment: attachment("c") });
        tokio::pin!(release);
        // Asked before the third plugin, answered after it.
        tokio::select! {
            biased;
            response = &mut release => panic!("did not wait: {response:?}"),
            address = third.reserve("other") => assert_eq!(address, "10.0.0.3"),
        }
        assert_eq!(first.attach("c").await, Response::Done);
        drop(first);
        assert_eq!(release.await, Response::Done);
    }
    assert!(server.endpoints().await.is_empty(), "the release came before the attach");
}

/// The agent's end cuts off a plugin that has nothing to lose, and lets another finish.
#[tokio::test]
async fn drain() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let server = start(dir.path()).await;
    let mut idle = Plugin::connect(dir.path()).await;
    assert_eq!(idle.ask(Request::Status).await, Response::Done);
    let mut busy = Plugin::connect(dir.path()).await;
    busy.reserve("c").await;
    let (answer, ()) = tokio::join!(
        async {
            assert_eq!(idle.hear().await, None, "want the end of the conversation");
            let answer = busy.attach("c").await;
            drop(busy);
            answer
        },
        server.shutdown()
    );
    assert_eq!(answer, Response::Done);
    assert_eq!(start(dir.path()).await.endpoints().await.len(), 1);
}

/// A request out of order is refused, and the conversation goes on.
#[tokio::test]
async fn attach_without_reservation() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let _server = start(dir.path()).await;
    let mut plugin = Plugin::connect(dir.path()).await;
    assert_eq!(code(&plugin.attach("c").await), Some(ErrorCode::AGENT_REFUSED));
    let check = plugin.ask(Request::Check { attachment: attachment("c") }).await;
    assert_eq!(code(&check), Some(ErrorCode::CHECK_FAILED));
    assert_eq!(plugin.ask(Request::Release { attachment: attachment("c") }).await, Response::Done);
    plugin.reserve("c").await;
    assert_eq!(plugin.attach("c").await, Response::Done);
}

/// Nonsense is answered, endless nonsense ends the conversation, and the server goes on.
#[tokio::test]
async fn nonsense() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let _server = start(dir.path()).await;
    let mut plugin = Plugin::connect(dir.path()).await;
    for line in [&b"\n"[..], b"{}\n", b"\xff\xff\n", br#"{"version":1,"request":{"verb":"fly"}}"#, b"\n"] {
        if line.ends_with(b"\n") {
            let response = plugin.say(line).await.expect("answers");
            assert_eq!(code(&response), Some(ErrorCode::DECODE_FAILURE), "{line:?}");
        } else {
            plugin.0.get_mut().write_all(line).await.expect("writes");
        }
    }
    let future = plugin.say(b"{\"version\":2,\"request\":{\"verb\":\"status\"}}\n").await.expect("answers");
    assert_eq!(code(&future), Some(ErrorCode::INCOMPATIBLE_VERSION));

    let mut flood = Plugin::connect(dir.path()).await;
    flood.0.get_mut().write_all(&vec![b'x'; MAX_MESSAGE_BYTES]).await.expect("writes");
    let mut rest = Vec::new();
    flood.0.read_to_end(&mut rest).await.expect("ends");
    assert!(rest.is_empty(), "{rest:?}");
    assert_eq!(plugin.ask(Request::Status).await, Response::Done);
}

/// A record that is not one is left where it is, and stops nothing.
#[tokio::test]
async fn a_garbled_record_stops_nothing() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let server = start(dir.path()).await;
    let mut plugin = Plugin::connect(dir.path()).await;
    plugin.reserve("c").await;
    assert_eq!(plugin.attach("c").await, Response::Done);
    drop(plugin);
    let records = dir.path().join("records");
    std::fs::create_dir_all(&records).expect("makes the directory");
    std::fs::write(records.join("aaa.release"), b"garbage").expect("writes");
    ReleaseRecord { attachment: attachment("c") }.write(&records).expect("writes");
    let consumed = async {
        while !server.endpoints().await.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), consumed).await.expect("the good record is carried out");
    assert!(records.join("aaa.release").exists());
}

/// Once the plugin that was here has left.
async fn release(releaser: &Releaser<Agreeable>, endpoint: &AttachedEndpoint) {
    for _ in 0..30 {
        if releaser.release(endpoint).await.is_ok() {
            return;
        }
    }
    panic!("the attachment stays busy");
}

/// CNI-30: the agent gives back what was abandoned, but not what has come in its place.
#[tokio::test]
async fn an_abandoned_endpoint_is_released_and_its_successor_is_not() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let server = start(dir.path()).await;
    let mut plugin = Plugin::connect(dir.path()).await;
    plugin.reserve("c").await;
    assert_eq!(plugin.attach("c").await, Response::Done);
    let abandoned = server.endpoints().await.remove(0);
    let releaser = server.releaser();
    let busy = releaser.release(&abandoned).await.expect_err("the plugin has its turn");
    assert_eq!(busy.code, ErrorCode::TRY_AGAIN_LATER);
    drop(plugin);
    release(&releaser, &abandoned).await;
    assert!(server.endpoints().await.is_empty());

    let mut plugin = Plugin::connect(dir.path()).await;
    plugin.reserve("c").await;
    assert_eq!(plugin.attach("c").await, Response::Done);
    drop(plugin);
    release(&releaser, &abandoned).await;
    assert_eq!(server.endpoints().await.len(), 1, "this one has another address");
}

/// The socket is root's alone, and one left by a crash is replaced.
#[tokio::test]
async fn the_socket_is_private_and_replaced() {
    use std::os::unix::fs::PermissionsExt;

    let dir = tempfile::tempdir().expect("temporary directory");
    std::fs::create_dir_all(dir.path().join("run")).expect("makes the directory");
    drop(std::os::unix::net::UnixListener::bind(dir.path().join("run/cni.sock")).expect("binds"));
    let _server = start(dir.path()).await;
    let mode = std::fs::metadata(dir.path().join("run/cni.sock")).expect("exists").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(Plugin::connect(dir.path()).await.ask(Request::Status).await, Response::Done);
}
