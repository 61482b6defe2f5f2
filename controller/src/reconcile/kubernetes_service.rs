//! Keeps the Service `default/kubernetes` and its EndpointSlice, by which Pods reach the apiserver. Called by `app` at
//! start and on a timer. The Service has the first address of the service CIDR.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Namespace, Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::PostParams;
use kube::{Api, Client};
use quilla_model::Family;

use crate::endpoint::SERVICE_LABEL;
use crate::error::{Error, is_code};

const NAMESPACE: &str = "default";
const NAME: &str = "kubernetes";
const PORT_NAME: &str = "https";

/// What the Service looks like in this cluster.
#[derive(Clone, Debug)]
pub struct KubernetesService {
    service_ip: IpAddr,
    addresses: Vec<IpAddr>,
    port: u16,
}

impl KubernetesService {
    /// `advertised` are the apiserver's addresses as Pods reach them; those of the first one's family are used, for
    /// the Service has one family. Without any it has no endpoints.
    pub fn new(service_cidrs: &[IpNet], advertised: &[SocketAddr]) -> Option<Self> {
        let usable = |address: &&SocketAddr| quilla_model::address::unusable(address.ip()).is_none();
        let first = advertised.iter().find(usable);
        let family = first.map_or(Family::of(service_cidrs.first()?.addr()), |first| Family::of(first.ip()));
        let cidr =
            service_cidrs.iter().find(|cidr| Family::of(cidr.addr()) == family).or(service_cidrs.first())?;
        let family = Family::of(cidr.addr());
        let same = advertised.iter().filter(usable).filter(|address| Family::of(address.ip()) == family);
        Some(Self {
            service_ip: first_host(cidr),
            addresses: same.map(SocketAddr::ip).collect(),
            port: first.or(advertised.first()).map_or(443, SocketAddr::port),
        })
    }

    /// Creates what is missing and corrects the endpoints.
    pub async fn ensure(&self, client: &Client) -> Result<(), Error> {
        ensure_namespace(client).await?;
        let services: Api<Service> = Api::namespaced(client.clone(), NAMESPACE);
        let object = format!("{NAMESPACE}/{NAME}");
        let failed = |operation| Error::api(operation, "Service", &object);
        if services.get_opt(NAME).await.map_err(failed("get"))?.is_none() {
            services.create(&PostParams::default(), &self.service()).await.map_err(failed("create"))?;
        }
        self.ensure_slice(client).await
    }

    async fn ensure_slice(&self, client: &Client) -> Result<(), Error> {
        let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), NAMESPACE);
        let object = format!("{NAMESPACE}/{NAME}");
        let failed = |operation| Error::api(operation, "EndpointSlice", &object);
        let wanted = self.slice();
        match slices.get_opt(NAME).await.map_err(failed("get"))? {
            None if self.addresses.is_empty() => Ok(()),
            None => slices.create(&PostParams::default(), &wanted).await.map(drop).map_err(failed("create")),
            Some(stored) if stored.endpoints == wanted.endpoints && stored.ports == wanted.ports => Ok(()),
            Some(mut stored) => {
                (stored.endpoints, stored.ports) = (wanted.endpoints, wanted.ports);
                slices
                    .replace(NAME, &PostParams::default(), &stored)
                    .await
                    .map(drop)
                    .map_err(failed("update"))
            }
        }
    }

    fn service(&self) -> Service {
        let port = ServicePort {
            name: Some(PORT_NAME.to_owned()),
            port: 443,
            target_port: Some(IntOrString::Int(self.port.into())),
            ..ServicePort::default()
        };
        let spec = ServiceSpec {
            cluster_ip: Some(self.service_ip.to_string()),
            ports: Some(vec![port]),
            ..ServiceSpec::default()
        };
        let labels = [("component", "apiserver"), ("provider", NAME)];
        Service { metadata: metadata(&labels), spec: Some(spec), status: None }
    }

    fn slice(&self) -> EndpointSlice {
        let endpoint = |address: &IpAddr| Endpoint {
            addresses: vec![address.to_string()],
            conditions: Some(EndpointConditions { ready: Some(true), ..EndpointConditions::default() }),
            ..Endpoint::default()
        };
        EndpointSlice {
            metadata: metadata(&[(SERVICE_LABEL, NAME)]),
            address_type: if self.service_ip.is_ipv4() { "IPv4" } else { "IPv6" }.to_owned(),
            endpoints: Some(self.addresses.iter().map(endpoint).collect()),
            ports: Some(vec![EndpointPort {
                name: Some(PORT_NAME.to_owned()),
                port: Some(self.port.into()),
                protocol: Some("TCP".to_owned()),
                app_protocol: None,
            }]),
        }
    }
}

async fn ensure_namespace(client: &Client) -> Result<(), Error> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let failed = |operation| Error::api(operation, "Namespace", NAMESPACE);
    if namespaces.get_opt(NAMESPACE).await.map_err(failed("get"))?.is_some() {
        return Ok(());
    }
    let mut namespace = Namespace::default();
    namespace.metadata.name = Some(NAMESPACE.to_owned());
    match namespaces.create(&PostParams::default(), &namespace).await {
        Err(error) if !is_code(&error, 409) => Err(failed("create")(error)),
        _ => Ok(()),
    }
}

fn metadata(labels: &[(&str, &str)]) -> ObjectMeta {
    ObjectMeta {
        name: Some(NAME.to_owned()),
        namespace: Some(NAMESPACE.to_owned()),
        labels: Some(labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()),
        ..ObjectMeta::default()
    }
}

fn first_host(cidr: &IpNet) -> IpAddr {
    match cidr.network() {
        IpAddr::V4(network) => IpAddr::V4(u32::from(network).saturating_add(1).into()),
        IpAddr::V6(network) => IpAddr::V6(u128::from(network).saturating_add(1).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::KubernetesService;

    #[test]
    fn the_service_has_the_first_address_of_the_advertised_family() {
        let cidrs = ["10.96.0.0/16", "fd00:96::/108"].map(|text| text.parse().expect("cidr"));
        let table = [
            (
                vec!["192.0.2.1:6443", "[2001:db8::1]:6443", "192.0.2.2:6443"],
                "10.96.0.1",
                vec!["192.0.2.1", "192.0.2.2"],
            ),
            (vec!["[2001:db8::1]:6443"], "fd00:96::1", vec!["2001:db8::1"]),
            (vec!["127.0.0.1:6443"], "10.96.0.1", vec![]),
            (vec![], "10.96.0.1", vec![]),
        ];
        for (advertised, address, endpoints) in table {
            let parsed: Vec<_> = advertised.iter().map(|text| text.parse().expect("address")).collect();
            let found = KubernetesService::new(&cidrs, &parsed).expect("has a cidr");
            assert_eq!(found.service_ip.to_string(), address, "{advertised:?}");
            assert_eq!(
                found.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
                endpoints,
                "{advertised:?}"
            );
        }
    }
}
