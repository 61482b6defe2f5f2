//! Which subnets a node keeps when the answer to the write is not what it should be.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Json, Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::patch;
use k8s_openapi::api::core::v1::Node;
use kube::runtime::watcher::Event;
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::{NodeCidrs, Reconciler};
use crate::reconcile::cache::Key;
use crate::subnet::Subnets;

/// An apiserver that answers with what was laid out for it, and notes who was to get what.
#[derive(Clone, Default)]
struct Fake {
    codes: Arc<Mutex<VecDeque<u16>>>,
    asked: Arc<Mutex<Vec<(String, String)>>>,
}

async fn answer(State(fake): State<Fake>, Path(name): Path<String>, body: Json<Value>) -> Response {
    let cidr = body["spec"]["podCIDR"].as_str().expect("a cidr").to_owned();
    fake.asked.lock().expect("no panic").push((name.clone(), cidr.clone()));
    let code = fake.codes.lock().expect("no panic").pop_front().expect("an answer is laid out");
    if code == 200 {
        return Json(json!(node(&name, "9", Some(&cidr)))).into_response();
    }
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "as laid out", "reason": "Other", "code": code});
    (StatusCode::from_u16(code).expect("a code"), Json(status)).into_response()
}

fn node(name: &str, version: &str, cidr: Option<&str>) -> Node {
    let cidrs: Vec<_> = cidr.into_iter().collect();
    let metadata = json!({"name": name, "uid": name, "resourceVersion": version});
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": {"podCIDR": cidr, "podCIDRs": cidrs}});
    serde_json::from_value(node).expect("node")
}

/// Two subnets, nodes a and b, and the answers to come.
async fn reconciler(codes: &[u16]) -> (NodeCidrs, Fake) {
    let fake = Fake { codes: Arc::new(Mutex::new(codes.iter().copied().collect())), ..Fake::default() };
    let router = Router::new().route("/api/v1/nodes/{name}", patch(answer)).with_state(fake.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move { axum::serve(listener, router).await });
    let config = Config::new(format!("http://{address}").parse().expect("url"));
    let subnets = Subnets::new("10.244.0.0/23".parse().expect("cidr"), 24).expect("divides");
    let mut nodes = NodeCidrs::new(Client::try_from(config).expect("client"), vec![subnets]);
    for event in [
        Event::Init,
        Event::InitApply(node("a", "1", None)),
        Event::InitApply(node("b", "2", None)),
        Event::InitDone,
    ] {
        nodes.observe(Box::new(event));
    }
    (nodes, fake)
}

fn asked(fake: &Fake) -> Vec<(String, String)> {
    std::mem::take(&mut *fake.asked.lock().expect("no panic"))
}

fn gave(name: &str, cidr: &str) -> Vec<(String, String)> {
    vec![(name.to_owned(), cidr.to_owned())]
}

#[tokio::test]
async fn a_lost_answer_keeps_the_subnet_reserved() {
    // Stored, but the answer is lost; b's is refused once; a's second attempt finds its own first one in the way.
    let (mut nodes, fake) = reconciler(&[500, 422, 200, 409]).await;
    let (a, b) = (Key::new("", "a"), Key::new("", "b"));
    nodes.reconcile(&a).await.expect_err("lost");
    assert_eq!(asked(&fake), gave("a", "10.244.0.0/24"));
    nodes.reconcile(&b).await.expect_err("refused");
    assert_eq!(asked(&fake), gave("b", "10.244.1.0/24"), "a's may be stored");
    nodes.reconcile(&b).await.expect("b has one");
    assert_eq!(asked(&fake), gave("b", "10.244.1.0/24"), "the refused one is free again, a's is not");
    nodes.reconcile(&a).await.expect_err("changed meanwhile");
    assert_eq!(asked(&fake), gave("a", "10.244.0.0/24"), "the same as before");

    // Still a's: the refusal was not of the first attempt.
    nodes.observe(Box::new(Event::Apply(node("c", "3", None))));
    nodes.reconcile(&Key::new("", "c")).await.expect_err("nothing is left");
    assert_eq!(asked(&fake), []);
    nodes.observe(Box::new(Event::Apply(node("a", "4", Some("10.244.0.0/24")))));
    nodes.reconcile(&a).await.expect("the watch told");
    assert_eq!(asked(&fake), []);
}

#[tokio::test]
async fn a_doubt_ends_with_the_node_or_with_what_it_got_elsewhere() {
    let (mut nodes, fake) = reconciler(&[500, 409, 200]).await;
    let (a, b) = (Key::new("", "a"), Key::new("", "b"));
    nodes.reconcile(&a).await.expect_err("lost");
    nodes.reconcile(&b).await.expect_err("changed, perhaps by an attempt of the client");
    asked(&fake);
    nodes.observe(Box::new(Event::Delete(node("a", "3", None))));
    nodes.observe(Box::new(Event::Apply(node("b", "4", Some("192.0.2.0/24")))));
    nodes.observe(Box::new(Event::Apply(node("c", "5", None))));
    nodes.reconcile(&Key::new("", "c")).await.expect("both are free");
    assert_eq!(asked(&fake), gave("c", "10.244.0.0/24"));
}
