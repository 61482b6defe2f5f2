//! Which addresses the apiserver has that this agent asks: no rule of ours may ever come between the two. Read by the
//! reconciler.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Between two looks at what a name means.
const INTERVAL: Duration = Duration::from_mins(1);

/// None while a name's addresses are not known.
pub type Servers = Option<BTreeSet<IpAddr>>;

/// Where requests go: to the server, or to a proxy before it.
#[derive(Clone, Debug)]
pub struct Hosts(Vec<String>);

impl Hosts {
    /// Those of a client's configuration.
    pub fn of(config: &kube::Config) -> Self {
        let uris = config.proxy_url.iter().chain([&config.cluster_url]);
        let bare = |host: &str| host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Self(uris.filter_map(|uri| uri.host()).map(bare).collect())
    }

    /// What can be said without asking anybody.
    pub fn known(&self) -> Servers {
        self.0.iter().map(|host| host.parse().ok()).collect()
    }

    /// Keeps the addresses of names up to date until `drain`. While a name cannot be looked up, its last addresses count.
    pub async fn follow(self, servers: watch::Sender<Servers>, drain: CancellationToken) {
        if self.known().is_some() {
            return drain.cancelled().await;
        }
        loop {
            if let Some(Some(found)) = drain.run_until_cancelled(self.look_up()).await {
                servers.send_if_modified(|known| known.replace(found) != *known);
            }
            if drain.run_until_cancelled(tokio::time::sleep(INTERVAL)).await.is_none() {
                return;
            }
        }
    }

    async fn look_up(&self) -> Servers {
        let mut found = BTreeSet::new();
        for host in &self.0 {
            match tokio::net::lookup_host((host.as_str(), 0)).await {
                Ok(addresses) => found.extend(addresses.map(|address| address.ip())),
                Err(error) => {
                    tracing::warn!(host, error = %error, "look up the apiserver");
                    return None;
                }
            }
        }
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::IpAddr;

    use tokio::sync::watch;
    use tokio_util::sync::CancellationToken;

    use super::Hosts;

    fn hosts(url: &str, proxy: Option<&str>) -> Hosts {
        let mut config = kube::Config::new(url.parse().unwrap());
        config.proxy_url = proxy.map(|url| url.parse().unwrap());
        Hosts::of(&config)
    }

    fn servers(addresses: &[&str]) -> BTreeSet<IpAddr> {
        addresses.iter().map(|address| address.parse().unwrap()).collect()
    }

    #[test]
    fn e8_addresses_are_known_at_once_and_names_are_not() {
        assert_eq!(hosts("https://192.0.2.10:6443", None).known(), Some(servers(&["192.0.2.10"])));
        let both = hosts("https://[2001:db8::10]:6443/path", Some("http://192.0.2.9:3128"));
        assert_eq!(both.known(), Some(servers(&["192.0.2.9", "2001:db8::10"])));
        assert_eq!(hosts("https://api.example:6443", None).known(), None);
        assert_eq!(hosts("https://192.0.2.10:6443", Some("http://proxy.example:3128")).known(), None);
    }

    #[tokio::test]
    async fn e8_a_name_is_looked_up() {
        let (sender, mut receiver) = watch::channel(None::<BTreeSet<_>>);
        let drain = CancellationToken::new();
        let following = tokio::spawn(hosts("https://localhost:6443", None).follow(sender, drain.clone()));
        let found = receiver.wait_for(Option::is_some).await.unwrap().clone().unwrap();
        assert!(found.iter().all(IpAddr::is_loopback) && !found.is_empty(), "{found:?}");
        drain.cancel();
        following.await.unwrap();
    }
}
