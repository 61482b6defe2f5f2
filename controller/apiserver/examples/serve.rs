//! Runs the apiserver alone, admitting everything: `cargo run -p quilla-apiserver --example serve -- DATA_DIR ADDRESS`.
//!
//! Writes `DATA_DIR/kubeconfig` and serves until it is interrupted. For trying things out and for tests that kill it.

use std::path::PathBuf;
use std::sync::Arc;

use quilla_apiserver::{AdmitAll, Config, Server};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let data_dir = PathBuf::from(arguments.next().ok_or("usage: serve DATA_DIR [ADDRESS]")?);
    let listen = arguments.next().map_or(Ok(([127, 0, 0, 1], 0).into()), |address| address.parse())?;
    let token = "example";
    let tokens = vec![(token.to_owned(), "admin".to_owned())];
    let config = Config { listen, data_dir: data_dir.clone(), tokens, ..Config::default() };
    let server = Server::start(config, Arc::new(AdmitAll)).await?;
    let url = format!("https://{}", server.local_addr());
    let kubeconfig = data_dir.join("kubeconfig");
    std::fs::write(&kubeconfig, server.kubeconfig(token, &url))?;
    println!("serving {url}\nkubectl --kubeconfig {} get namespaces", kubeconfig.display());
    tokio::signal::ctrl_c().await?;
    server.shutdown().await;
    Ok(())
}
