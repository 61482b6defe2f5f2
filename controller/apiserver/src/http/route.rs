//! From a path to what it means: `/apis/GROUP/VERSION/namespaces/NS/PLURAL/NAME/SUBRESOURCE`.
//!
//! `dispatch` calls it first. Invariant: a path that is not served gives the same 404 whatever the method.

use crate::resource::{RESOURCES, Resource};
use crate::status::{Refusal, Result};

/// What a path is about.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Route {
    Health,
    Version,
    /// `/api`
    CoreVersions,
    /// `/apis`
    Groups,
    /// `/apis/GROUP`
    Group(String),
    /// `/api/v1` or `/apis/GROUP/VERSION`
    Resources {
        group: String,
        version: String,
    },
    OpenApiIndex,
    OpenApiV2,
    OpenApi {
        group: String,
        version: String,
    },
    Collection {
        resource: &'static Resource,
        namespace: Option<String>,
    },
    Object {
        resource: &'static Resource,
        namespace: String,
        name: String,
        status: bool,
    },
}

pub(super) fn route(path: &str) -> Result<Route> {
    let parts: Vec<String> = path.split('/').filter(|part| !part.is_empty()).map(unescape).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let owned = |text: &str| text.to_owned();
    match parts.as_slice() {
        ["healthz" | "livez" | "readyz", ..] => Ok(Route::Health),
        ["version"] => Ok(Route::Version),
        ["api"] => Ok(Route::CoreVersions),
        ["apis"] => Ok(Route::Groups),
        ["openapi", "v2"] => Ok(Route::OpenApiV2),
        ["openapi", "v3"] => Ok(Route::OpenApiIndex),
        ["openapi", "v3", "api", version] => {
            served(Route::OpenApi { group: String::new(), version: owned(version) })
        }
        ["openapi", "v3", "apis", group, version] => {
            served(Route::OpenApi { group: owned(group), version: owned(version) })
        }
        ["api", version] => served(Route::Resources { group: String::new(), version: owned(version) }),
        ["apis", group] if RESOURCES.iter().any(|r| r.group == *group) => Ok(Route::Group(owned(group))),
        ["apis", group, version] => served(Route::Resources { group: owned(group), version: owned(version) }),
        ["api", version, rest @ ..] => objects("", version, rest),
        ["apis", group, version, rest @ ..] => objects(group, version, rest),
        _ => Err(Refusal::no_such_resource()),
    }
}

fn served(route: Route) -> Result<Route> {
    let known = match &route {
        Route::Resources { group, version } | Route::OpenApi { group, version } => {
            RESOURCES.iter().any(|r| r.group == group && r.version == version)
        }
        _ => true,
    };
    if known { Ok(route) } else { Err(Refusal::no_such_resource()) }
}

fn objects(group: &str, version: &str, rest: &[&str]) -> Result<Route> {
    let find = |plural: &str, namespaced: bool| {
        Resource::find(group, version, plural)
            .filter(|resource| resource.namespaced == namespaced)
            .ok_or_else(Refusal::no_such_resource)
    };
    let object = |resource, namespace: &str, name: &str, status| Route::Object {
        resource,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        status,
    };
    match rest {
        // A list over all namespaces, or of a cluster-scoped kind.
        [plural] => {
            let resource = Resource::find(group, version, plural).ok_or_else(Refusal::no_such_resource)?;
            Ok(Route::Collection { resource, namespace: None })
        }
        ["namespaces", namespace, plural, rest @ ..] if *plural != "status" || !group.is_empty() => {
            let resource = find(plural, true)?;
            match rest {
                [] => Ok(Route::Collection { resource, namespace: Some((*namespace).to_owned()) }),
                [name] => Ok(object(resource, namespace, name, false)),
                [name, "status"] if resource.has_status() => Ok(object(resource, namespace, name, true)),
                _ => Err(Refusal::no_such_resource()),
            }
        }
        [plural, name] => Ok(object(find(plural, false)?, "", name, false)),
        [plural, name, "status"] => {
            let resource = find(plural, false)?;
            if resource.has_status() {
                Ok(object(resource, "", name, true))
            } else {
                Err(Refusal::no_such_resource())
            }
        }
        _ => Err(Refusal::no_such_resource()),
    }
}

fn unescape(part: &str) -> String {
    // `+` is itself in a path; form decoding would make it a space.
    let plus_kept = part.replace('+', "%2B");
    form_urlencoded::parse(plus_kept.as_bytes()).next().map(|(key, _)| key.into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let pods = Resource::core("pods");
        let namespaces = Resource::core("namespaces");
        let object = |resource, namespace: &str, name: &str, status| {
            Ok(Route::Object { resource, namespace: namespace.into(), name: name.into(), status })
        };
        for (path, expected) in [
            ("/api/v1/pods", Ok(Route::Collection { resource: pods, namespace: None })),
            (
                "/api/v1/namespaces/a/pods",
                Ok(Route::Collection { resource: pods, namespace: Some("a".into()) }),
            ),
            ("/api/v1/namespaces/a/pods/b", object(pods, "a", "b", false)),
            ("/api/v1/namespaces/a/pods/b/status", object(pods, "a", "b", true)),
            ("/api/v1/namespaces/a", object(namespaces, "", "a", false)),
            ("/api/v1/namespaces/a/status", object(namespaces, "", "a", true)),
        ] {
            assert_eq!(route(path).map_err(|e| e.code), expected, "{path}");
        }
        for path in [
            "/",
            "/api/v2",
            "/apis/x.io",
            "/api/v1/frobs",
            "/api/v1/namespaces/a/nodes",
            "/api/v1/pods/a/status",
        ] {
            assert_eq!(route(path).err().map(|e| e.code), Some(404), "{path}");
        }
    }
}
