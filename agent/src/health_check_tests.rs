//! Real servers on the loopback address.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quilla_model::ObjectName;
use quilla_plan::desired::HealthCheck;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::{Answers, Servers};
use crate::events::Notice;
use crate::metrics::Metrics;

const HERE: [IpAddr; 1] = [IpAddr::V4(Ipv4Addr::LOCALHOST)];

type Checks = BTreeMap<ObjectName, HealthCheck>;

fn servers() -> (Servers, mpsc::Receiver<Notice>) {
    let (notices, received) = mpsc::channel(8);
    let servers = Servers {
        running: BTreeMap::new(),
        tasks: JoinSet::new(),
        told: [].into(),
        answers: watch::channel(Answers::new()).0,
        metrics: Arc::new(Metrics::new()),
        notices,
    };
    (servers, received)
}

/// A port that nobody had a moment ago.
async fn free_port() -> u16 {
    TcpListener::bind((HERE[0], 0)).await.unwrap().local_addr().unwrap().port()
}

fn checks(list: &[(&str, u16, usize)]) -> Checks {
    let check = |&(name, port, local_endpoints): &(&str, u16, usize)| {
        (ObjectName::new("shop", name), HealthCheck { port, local_endpoints })
    };
    list.iter().map(check).collect()
}

/// The answer as it stands on the wire; headers in small letters.
async fn asked(port: u16, path: &str) -> (String, Vec<String>, String) {
    let mut stream = TcpStream::connect(SocketAddr::new(HERE[0], port)).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let mut lines = head.lines().map(str::to_owned);
    let status = lines.next().unwrap();
    (status, lines.map(|line| line.to_lowercase()).collect(), body.to_owned())
}

#[tokio::test]
async fn s40_path_body_headers_and_codes() {
    let (mut servers, _notices) = servers();
    let port = free_port().await;
    assert!(servers.follow(&checks(&[("web", port, 2)]), &HERE).await);
    servers.metrics.reconciled(Duration::ZERO);
    for path in ["/", "/healthz", "/any/path?x=1"] {
        let (status, headers, body) = asked(port, path).await;
        assert_eq!(status, "HTTP/1.1 200 OK");
        let expected = concat!(
            r#"{"service":{"namespace":"shop","name":"web"},"#,
            r#""localEndpoints":2,"serviceProxyHealthy":true}"#
        );
        assert_eq!(body, expected);
        for header in [
            "content-type: application/json",
            "x-content-type-options: nosniff",
            "x-load-balancing-endpoint-weight: 2",
        ] {
            assert!(headers.iter().any(|line| line == header), "{header} in {headers:?}");
        }
    }

    assert!(servers.follow(&checks(&[("web", port, 0)]), &HERE).await);
    let (status, headers, body) = asked(port, "/").await;
    assert_eq!(status, "HTTP/1.1 503 Service Unavailable");
    assert!(headers.iter().any(|line| line == "x-load-balancing-endpoint-weight: 0"), "{headers:?}");
    assert!(body.contains(r#""localEndpoints":0,"serviceProxyHealthy":true"#), "{body}");
}

#[tokio::test]
async fn s40_an_agent_that_is_not_healthy_says_so() {
    let (mut servers, _notices) = servers();
    let port = free_port().await;
    servers.follow(&checks(&[("web", port, 2)]), &HERE).await;
    let (status, _, body) = asked(port, "/").await;
    assert_eq!(status, "HTTP/1.1 503 Service Unavailable");
    assert!(body.contains(r#""localEndpoints":2,"serviceProxyHealthy":false"#), "{body}");
}

#[tokio::test]
async fn s40_servers_come_move_and_go_with_their_services() {
    let (mut servers, _notices) = servers();
    servers.metrics.reconciled(Duration::ZERO);
    let (first, second) = (free_port().await, free_port().await);
    servers.follow(&checks(&[("a", first, 1), ("b", second, 1)]), &HERE).await;
    assert!(asked(second, "/").await.2.contains(r#""name":"b""#));
    servers.follow(&checks(&[("a", second, 1)]), &HERE).await;
    assert!(asked(second, "/").await.2.contains(r#""name":"a""#), "the port is another Service's now");
    servers.follow(&Checks::new(), &HERE).await;
    while servers.tasks.join_next().await.is_some() {}
    for port in [first, second] {
        assert!(TcpStream::connect((HERE[0], port)).await.is_err(), "nobody listens any more");
    }
}

/// A port that is taken: one Event, more attempts, and the other Services have theirs.
#[tokio::test]
async fn s40_a_port_that_cannot_be_had_is_told_once_and_tried_again() {
    let (mut servers, mut notices) = servers();
    servers.metrics.reconciled(Duration::ZERO);
    let intruder = TcpListener::bind((HERE[0], 0)).await.unwrap();
    let (taken, free) = (intruder.local_addr().unwrap().port(), free_port().await);
    let wanted = checks(&[("a", taken, 1), ("b", free, 1), ("c", free, 1)]);
    for _ in 0..3 {
        assert!(!servers.follow(&wanted, &HERE).await, "to be tried again");
    }
    assert!(asked(free, "/").await.0.ends_with("200 OK"));
    let mut told: Vec<_> = std::iter::from_fn(|| notices.try_recv().ok()).collect();
    told.sort_by_key(|notice| notice.object.clone());
    let names: Vec<_> = told.iter().map(|notice| (&*notice.object.name, &*notice.reason)).collect();
    let reason = "FailedToStartServiceHealthcheck";
    assert_eq!(names, [("a", reason), ("c", reason)], "{told:?}");
    assert!(told[1].message.contains("the port is shop/b's"), "{told:?}");

    drop(intruder);
    assert!(!servers.follow(&wanted, &HERE).await, "the two that want one port still do");
    assert!(asked(taken, "/").await.0.ends_with("200 OK"));
    assert!(notices.try_recv().is_err());
}
