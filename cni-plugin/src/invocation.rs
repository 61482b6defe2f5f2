//! The environment a runtime calls us with. Parsed once by `main`; a value that leaves here has the shape the
//! specification demands, and an error names every variable concerned.

use std::env;
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;

use quilla_cni_protocol::{
    Attachment, CniError, ErrorCode, MacAddress, PodRef, validate_container_id, validate_ifname,
};

/// What we are asked to do.
#[derive(Debug)]
pub(crate) struct Invocation {
    /// The operation with its parameters.
    pub(crate) verb: Verb,
    /// Folders with plugins (`CNI_PATH`).
    pub(crate) plugin_folders: Vec<PathBuf>,
}

/// An operation of the specification.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    /// Attach.
    Add(Target),
    /// Detach; needs no namespace.
    Del(Attachment),
    /// Compare with `prevResult`.
    Check(Target),
    /// Remove what the runtime no longer knows.
    Gc,
    /// Could an ADD be served?
    Status,
    /// Which versions do we speak?
    Version,
}

/// An attachment and where it lives.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// Container and interface.
    pub(crate) attachment: Attachment,
    /// The namespace as the runtime named it.
    pub(crate) netns: PathBuf,
    /// What `CNI_ARGS` says.
    pub(crate) args: Args,
}

/// The pairs of `CNI_ARGS` that mean something here.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Args {
    /// The Pod (`K8S_POD_…` of kubelet and containerd).
    pub(crate) pod: Option<PodRef>,
    /// Wished addresses (`IP`, several joined by commas, a prefix length is ignored).
    pub(crate) ips: Vec<IpAddr>,
    /// Wished Ethernet address (`MAC`).
    pub(crate) mac: Option<MacAddress>,
}

impl Invocation {
    /// Reads and validates the variables the operation needs.
    pub(crate) fn from_env(lookup: impl Fn(&str) -> Option<OsString>) -> Result<Self, CniError> {
        let environment = Environment { lookup };
        let command = environment.require(&["CNI_COMMAND"])?.remove(0);
        let verb = match command.as_str() {
            "ADD" => Verb::Add(environment.target()?),
            "CHECK" => Verb::Check(environment.target()?),
            "DEL" => Verb::Del(environment.attachment()?),
            "GC" => {
                environment.require(&["CNI_PATH"])?;
                Verb::Gc
            }
            "STATUS" => Verb::Status,
            "VERSION" => Verb::Version,
            other => return Err(invalid(format!("CNI_COMMAND {other:?} is unknown"))),
        };
        let folders = environment.get("CNI_PATH")?.unwrap_or_default();
        Ok(Self { verb, plugin_folders: env::split_paths(&folders).collect() })
    }
}

struct Environment<F> {
    lookup: F,
}

impl<F: Fn(&str) -> Option<OsString>> Environment<F> {
    /// The values of variables that must be there, all complaints in one error.
    fn require(&self, names: &[&str]) -> Result<Vec<String>, CniError> {
        let values: Vec<_> = names.iter().map(|name| self.get(name)).collect::<Result<_, _>>()?;
        let missing: Vec<_> =
            names.iter().zip(&values).filter(|(_, value)| value.is_none()).map(|(name, _)| *name).collect();
        if missing.is_empty() {
            Ok(values.into_iter().flatten().collect())
        } else {
            Err(invalid(format!("missing: {}", missing.join(", "))))
        }
    }

    /// A variable; an empty one counts as absent.
    fn get(&self, name: &str) -> Result<Option<String>, CniError> {
        let Some(value) = (self.lookup)(name) else { return Ok(None) };
        let text = value.into_string().map_err(|_| invalid(format!("{name} is not valid utf-8")))?;
        Ok(Some(text).filter(|text| !text.is_empty()))
    }

    fn attachment(&self) -> Result<Attachment, CniError> {
        let mut values = self.require(&["CNI_CONTAINERID", "CNI_IFNAME"])?.into_iter();
        let attachment = Attachment {
            container_id: values.next().unwrap_or_default(),
            ifname: values.next().unwrap_or_default(),
        };
        if !validate_container_id(&attachment.container_id) {
            return Err(invalid(format!("CNI_CONTAINERID {:?} is malformed", attachment.container_id)));
        }
        if !validate_ifname(&attachment.ifname) {
            return Err(invalid(format!("CNI_IFNAME {:?} is not an interface name", attachment.ifname)));
        }
        Ok(attachment)
    }

    fn target(&self) -> Result<Target, CniError> {
        let netns = self.require(&["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"])?.remove(1).into();
        let args = self.get("CNI_ARGS")?.unwrap_or_default();
        Ok(Target { attachment: self.attachment()?, netns, args: parse_args(&args)? })
    }
}

/// Reads `CNI_ARGS`, a list of `KEY=VALUE` joined by semicolons.
fn parse_args(args: &str) -> Result<Args, CniError> {
    let (mut namespace, mut name, mut uid) = (None, None, None);
    let (mut ignore_unknown, mut unknown) = (false, Vec::new());
    let (mut ips, mut mac) = (Vec::new(), None);
    for pair in args.split(';').filter(|pair| !pair.is_empty()) {
        let (key, value) =
            pair.split_once('=').ok_or_else(|| invalid(format!("CNI_ARGS: {pair:?} is not KEY=VALUE")))?;
        let malformed = || invalid(format!("CNI_ARGS: {pair:?} is malformed"));
        // What a runtime does not know it may leave empty.
        let known = || Some(value.to_owned()).filter(|value| !value.is_empty());
        match key {
            "K8S_POD_NAMESPACE" => namespace = known(),
            "K8S_POD_NAME" => name = known(),
            "K8S_POD_UID" => uid = known(),
            "K8S_POD_INFRA_CONTAINER_ID" => {}
            "IP" => ips = parse_addresses(value).ok_or_else(malformed)?,
            "MAC" => mac = Some(value.parse().map_err(|_| malformed())?),
            "IgnoreUnknown" => ignore_unknown = matches!(value, "1" | "true" | "True" | "TRUE" | "t" | "T"),
            _ => unknown.push(key),
        }
    }
    if !unknown.is_empty() && !ignore_unknown {
        return Err(invalid(format!("CNI_ARGS: unknown {}", unknown.join(", "))));
    }
    let pod = match (namespace, name) {
        (Some(namespace), Some(name)) => Some(PodRef { namespace, name, uid }),
        // podman names its containers so; a name without a namespace is no Pod of the cluster.
        (None, _) => None,
        (Some(_), None) => {
            return Err(invalid("CNI_ARGS: K8S_POD_NAMESPACE needs K8S_POD_NAME".to_owned()));
        }
    };
    Ok(Args { pod, ips, mac })
}

fn parse_addresses(list: &str) -> Option<Vec<IpAddr>> {
    list.split(',').map(|text| text.split('/').next()?.parse().ok()).collect()
}

fn invalid(details: String) -> CniError {
    CniError::new(ErrorCode::INVALID_ENVIRONMENT, "invalid environment", details)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;

    use super::{Args, Invocation, Verb, parse_args};

    fn parse(variables: &[(&str, &str)]) -> Result<Verb, String> {
        Invocation::from_env(|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
        })
        .map(|invocation| invocation.verb)
        .map_err(|error| error.details)
    }

    /// CNI-3, CNI-7: every missing variable is named, and only those.
    #[test]
    fn missing_variables_are_named() {
        assert_eq!(parse(&[]), Err("missing: CNI_COMMAND".into()));
        assert_eq!(parse(&[("CNI_COMMAND", "")]), Err("missing: CNI_COMMAND".into()));
        let add = parse(&[("CNI_COMMAND", "ADD"), ("CNI_NETNS", "/n")]);
        assert_eq!(add, Err("missing: CNI_CONTAINERID, CNI_IFNAME".into()));
        assert_eq!(parse(&[("CNI_COMMAND", "GC")]), Err("missing: CNI_PATH".into()));
    }

    /// CNI-7: DEL needs no namespace, VERSION and STATUS need nothing.
    #[test]
    fn what_is_not_required() {
        let del = [("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "c"), ("CNI_IFNAME", "eth0")];
        assert!(matches!(parse(&del), Ok(Verb::Del(_))));
        assert_eq!(parse(&[("CNI_COMMAND", "VERSION")]), Ok(Verb::Version));
        assert_eq!(parse(&[("CNI_COMMAND", "STATUS")]), Ok(Verb::Status));
    }

    #[test]
    fn text_that_is_not_utf8_is_refused() {
        let parsed = Invocation::from_env(|_| Some(OsString::from_vec(vec![0xff])));
        assert_eq!(parsed.expect_err("refused").details, "CNI_COMMAND is not valid utf-8");
    }

    /// CNI-5: unknown keys need `IgnoreUnknown`.
    #[test]
    fn args() {
        let args = parse_args("IgnoreUnknown=1;K8S_POD_NAMESPACE=a;K8S_POD_NAME=b;X=y").expect("valid");
        assert_eq!(args.pod.map(|pod| (pod.namespace, pod.name)), Some(("a".into(), "b".into())));
        assert_eq!(parse_args("").expect("valid"), Args::default());
        assert!(parse_args("X=y").is_err());
        assert!(parse_args("nonsense").is_err());
        assert!(parse_args("K8S_POD_NAMESPACE=a").is_err());
        assert_eq!(parse_args("K8S_POD_NAME=b").expect("valid"), Args::default());
        let nothing = "K8S_POD_NAMESPACE=;K8S_POD_NAME=;K8S_POD_UID=";
        assert_eq!(parse_args(nothing).expect("valid"), Args::default());
        let args = parse_args("K8S_POD_NAMESPACE=a;K8S_POD_NAME=b;K8S_POD_UID=").expect("valid");
        assert_eq!(args.pod.expect("a pod").uid, None);
    }

    /// CNI-33: a wished address and Ethernet address.
    #[test]
    fn wishes_in_args() {
        let args = parse_args("IP=192.0.2.7/24,2001:db8::7;MAC=02:00:00:00:00:07").expect("valid");
        let wished: [std::net::IpAddr; 2] =
            ["192.0.2.7".parse().expect("valid"), "2001:db8::7".parse().expect("valid")];
        assert_eq!(args.ips, wished);
        assert_eq!(args.mac.map(|mac| mac.to_string()).as_deref(), Some("02:00:00:00:00:07"));
        for text in ["IP=", "IP=192.0.2", "IP=192.0.2.1,", "MAC=1"] {
            assert!(parse_args(text).is_err(), "{text}");
        }
    }
}
