//! The extension point: what it may change and refuse, and when it is told to take back.

use std::sync::{Arc, Mutex};

use quilla_apiserver::{Admission, AdmissionRequest, Cause, Config, Operation, Rejection};
use serde_json::{Value, json};

use crate::fixture::{Api, CONFIG_MAPS, config_map};

/// Counts what is allocated, per `ConfigMap`.
#[derive(Default)]
struct Allocator(Mutex<Vec<String>>);

impl Admission for Allocator {
    fn admit(&self, request: &AdmissionRequest<'_>, new: Option<&mut Value>) -> Result<(), Rejection> {
        if request.resource != "configmaps" {
            return Ok(());
        }
        let mut held = self.0.lock().unwrap();
        match (request.operation, new) {
            (Operation::Create, Some(_)) if request.name == "refused" => Err(Rejection {
                code: 422,
                reason: "Invalid",
                message: "no room".to_owned(),
                causes: vec![Cause {
                    reason: "Full".into(),
                    message: "no room".into(),
                    field: "data.slot".into(),
                }],
            }),
            (Operation::Create, Some(new)) => {
                new["data"]["slot"] = json!(held.len().to_string());
                held.push(request.name.to_owned());
                Ok(())
            }
            (Operation::Delete, None) => {
                held.retain(|name| name != request.name);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn rolled_back(&self, request: &AdmissionRequest<'_>, _: Option<&Value>) {
        let mut held = self.0.lock().unwrap();
        match request.operation {
            Operation::Create => held.retain(|name| name != request.name),
            Operation::Delete => held.push(request.name.to_owned()),
            Operation::Update => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn admission_sees_every_write_and_takes_back_what_was_not_stored() {
    let allocator = Arc::new(Allocator::default());
    let api = Api::with(Config::default(), Arc::clone(&allocator) as Arc<dyn Admission>).await;
    let held = || allocator.0.lock().unwrap().clone();

    assert_eq!(api.created(CONFIG_MAPS, &config_map("a")).await["data"]["slot"], "0");
    assert_eq!(
        api.post(&format!("{CONFIG_MAPS}?dryRun=All"), &config_map("dry")).await.body["data"]["slot"],
        "1"
    );
    assert_eq!(held(), ["a"], "a dry run holds nothing");
    assert_eq!(api.post(CONFIG_MAPS, &config_map("a")).await.code, 409);
    assert_eq!(held(), ["a"], "a conflict holds nothing twice");
    let refused = api.post(CONFIG_MAPS, &config_map("refused")).await;
    assert_eq!((refused.code, &refused.body["details"]["causes"][0]["field"]), (422, &json!("data.slot")));
    api.delete(&format!("{CONFIG_MAPS}/a?dryRun=All"), &json!({})).await;
    assert_eq!(held(), ["a"], "a dry run of delete releases nothing");
    api.delete(&format!("{CONFIG_MAPS}/a"), &json!({})).await;
    assert!(held().is_empty(), "{:?}", held());
}
