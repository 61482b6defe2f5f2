//! Keeps the `ServiceCIDR` object `kubernetes`, by which clients learn the cluster's service CIDRs. Called by `app` at
//! start and on a timer. This object tells; for its ranges, the allocator obeys the command line.

use ipnet::IpNet;
use k8s_openapi::api::networking::v1::{ServiceCIDR, ServiceCIDRSpec};
use kube::api::PostParams;
use kube::{Api, Client};

use crate::error::{Error, is_code};

/// The object that tells of the command line's ranges. Others are added to them.
pub const NAME: &str = "kubernetes";

/// Creates the object if it is missing. Its CIDRs cannot change once set, as in Kubernetes.
pub async fn ensure(client: &Client, cidrs: &[IpNet]) -> Result<(), Error> {
    let api: Api<ServiceCIDR> = Api::all(client.clone());
    let failed = |operation| Error::api(operation, "ServiceCIDR", NAME);
    if api.get_opt(NAME).await.map_err(failed("get"))?.is_some() {
        return Ok(());
    }
    match api.create(&PostParams::default(), &object(cidrs)).await {
        Err(error) if !is_code(&error, 409) => Err(failed("create")(error)),
        _ => Ok(()),
    }
}

fn object(cidrs: &[IpNet]) -> ServiceCIDR {
    let mut object = ServiceCIDR::default();
    object.metadata.name = Some(NAME.to_owned());
    object.spec = Some(ServiceCIDRSpec { cidrs: Some(cidrs.iter().map(IpNet::to_string).collect()) });
    object
}
