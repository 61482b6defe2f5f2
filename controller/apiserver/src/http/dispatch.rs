//! Who asks, what for, and with which body: authentication, routing and the verbs.
//!
//! Invariant: nothing but the health endpoints answers without a known token.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, WARNING};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::printer::Shape;
use super::query::Query;
use super::route::{Route, route};
use super::{discovery, openapi};
use crate::auth::Tokens;
use crate::object;
use crate::patch::Format;
use crate::read;
use crate::resource::Resource;
use crate::status::{Refusal, Result};
use crate::watch::Watch;
use crate::write::{Api, Change, DeleteOptions, Target, Written};

pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// The same limit as kube-apiserver's.
const BODY_LIMIT: usize = 3 * 1024 * 1024;

#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) address: String,
    pub(crate) bookmark_every: Duration,
}

pub(crate) struct Service {
    pub(crate) api: Arc<Api>,
    pub(crate) tokens: Tokens,
    pub(crate) settings: Settings,
    /// Ends watches when the server stops.
    pub(crate) stop: CancellationToken,
}

impl Service {
    pub(crate) async fn handle(&self, request: Request<Incoming>) -> Response<Body> {
        self.answer(request).await.unwrap_or_else(|refusal| {
            let code = StatusCode::from_u16(refusal.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            respond(code, &refusal.to_value())
        })
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Body>> {
        let path = request.uri().path().to_owned();
        let routed = route(&path);
        if matches!(routed, Ok(Route::Health)) {
            return Ok(self.health());
        }
        let user =
            self.tokens.user(header(request.headers(), AUTHORIZATION)).ok_or_else(Refusal::unauthorized)?;
        tracing::debug!(target: "audit", user, method = %request.method(), path, "request");
        let route = routed?;
        let query = Query::parse(request.uri().query().unwrap_or_default());
        match route {
            Route::Collection { resource, namespace } => {
                self.collection(resource, namespace, &query, request).await
            }
            Route::Object { resource, namespace, name, status } => {
                self.object(Target { resource, namespace, name, status }, &query, request).await
            }
            _ if request.method() != Method::GET => Err(Refusal::method_not_allowed()),
            about => Ok(self.about(about, header(request.headers(), ACCEPT))),
        }
    }

    /// A server that cannot write is neither alive nor ready: a restart may help, waiting does not.
    fn health(&self) -> Response<Body> {
        match self.api.store.failure() {
            None => plain(StatusCode::OK, "ok"),
            Some(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, "storage failed: no write is accepted"),
        }
    }

    /// What the server says about itself.
    fn about(&self, route: Route, accept: &str) -> Response<Body> {
        let aggregated = accept.split(',').any(|clause| clause.replace(' ', "") == discovery::AGGREGATED);
        let answer = match route {
            Route::CoreVersions | Route::Groups if aggregated => {
                let answer = discovery::aggregated(route == Route::CoreVersions).to_string();
                let body = Full::new(Bytes::from(answer)).boxed_unsync();
                return response(StatusCode::OK, discovery::AGGREGATED, body);
            }
            Route::CoreVersions => discovery::core_versions(&self.settings.address),
            Route::Groups => discovery::groups(),
            Route::Group(name) => discovery::group(&name),
            Route::Resources { group, version } => discovery::resources(&group, &version),
            Route::OpenApiV2 if accept.contains(openapi::V2_ASKED) => {
                let body = Full::new(Bytes::from_static(openapi::NO_MODELS)).boxed_unsync();
                return response(StatusCode::OK, openapi::V2_PROTOBUF, body);
            }
            Route::OpenApiV2 => openapi::version_2(),
            Route::OpenApiIndex => openapi::index(),
            Route::OpenApi { group, version } => openapi::document(&group, &version),
            _ => discovery::version(),
        };
        respond(StatusCode::OK, &answer)
    }

    async fn collection(
        &self,
        resource: &'static Resource,
        namespace: Option<String>,
        query: &Query,
        request: Request<Incoming>,
    ) -> Result<Response<Body>> {
        let shape = shape(&request, query)?;
        match *request.method() {
            Method::GET if query.flag("watch")? => {
                let options = query.watch(resource, namespace.as_deref())?;
                self.watch(resource, options, shape)
            }
            Method::GET => {
                let page =
                    read::list(&*self.api.store, resource, &query.list(resource, namespace.as_deref())?)?;
                Ok(respond_text(StatusCode::OK, shape.page(resource, &page)))
            }
            Method::POST if resource.namespaced == namespace.is_some() => {
                let body = json_body(request).await?;
                let namespace = namespace.unwrap_or_default();
                let written = self.api.create(resource, &namespace, body, query.write()?).await?;
                Ok(wrote(StatusCode::CREATED, resource, shape, written))
            }
            Method::DELETE if resource.namespaced == namespace.is_some() => {
                self.delete_collection(resource, namespace, query, request, shape).await
            }
            _ => Err(Refusal::method_not_allowed()),
        }
    }

    async fn object(
        &self,
        target: Target,
        query: &Query,
        request: Request<Incoming>,
    ) -> Result<Response<Body>> {
        let shape = shape(&request, query)?;
        let resource = target.resource;
        match *request.method() {
            Method::GET if query.flag("watch")? && !target.status => {
                let mut options = query.watch(resource, Some(&target.namespace))?;
                options.selector.fields = options.selector.fields.and_name(&target.name);
                self.watch(resource, options, shape)
            }
            Method::GET => {
                let object = read::get(&*self.api.store, resource, &target.namespace, &target.name)?;
                Ok(respond(StatusCode::OK, &shape.object(resource, &object)))
            }
            Method::PUT => {
                let options = query.write()?;
                let change = Change::Replace(json_body(request).await?);
                Ok(wrote(StatusCode::OK, resource, shape, self.api.update(&target, change, options).await?))
            }
            Method::PATCH => {
                let options = query.write()?;
                let change = patch_body(request).await?;
                Ok(wrote(StatusCode::OK, resource, shape, self.api.update(&target, change, options).await?))
            }
            Method::DELETE if !target.status => {
                let options = delete_options(query, request).await?;
                let (gone, written) = self.api.delete(&target, &options).await?;
                if gone {
                    return Ok(respond(StatusCode::OK, &deleted(&target, &written)));
                }
                Ok(wrote(StatusCode::OK, resource, shape, written))
            }
            _ => Err(Refusal::method_not_allowed()),
        }
    }

    async fn delete_collection(
        &self,
        resource: &'static Resource,
        namespace: Option<String>,
        query: &Query,
        request: Request<Incoming>,
        shape: Shape,
    ) -> Result<Response<Body>> {
        let page = read::list(&*self.api.store, resource, &query.list(resource, namespace.as_deref())?)?;
        let options = delete_options(query, request).await?;
        for object in &page.objects {
            let (namespace, name) = (object::namespace(object).to_owned(), object::name(object).to_owned());
            match self.api.delete(&Target { resource, namespace, name, status: false }, &options).await {
                // Someone else was faster.
                Err(refusal) if refusal.code == 404 => {}
                result => drop(result?),
            }
        }
        Ok(respond_text(StatusCode::OK, shape.page(resource, &page)))
    }

    fn watch(
        &self,
        resource: &'static Resource,
        options: crate::watch::WatchOptions,
        shape: Shape,
    ) -> Result<Response<Body>> {
        let store = Arc::clone(&self.api.store);
        let watch = Watch::open(store, resource, options, self.settings.bookmark_every, self.stop.clone())?;
        let lines = stream::unfold((watch, true), move |(mut watch, mut first)| async move {
            let notices = watch.next().await?;
            let mut lines = Vec::new();
            for notice in &notices {
                lines.extend(shape.notice(resource, notice, first).to_string().into_bytes());
                lines.push(b'\n');
                first = false;
            }
            Some((Ok(Frame::data(Bytes::from(lines))), (watch, first)))
        });
        Ok(response(StatusCode::OK, "application/json", StreamBody::new(lines).boxed_unsync()))
    }
}

// === bodies in ===

async fn json_body(request: Request<Incoming>) -> Result<Value> {
    match media_type(request.headers()).as_str() {
        "" | "application/json" => parse(&read_body(request).await?),
        "application/vnd.kubernetes.protobuf" => Err(Refusal::protobuf()),
        other => Err(Refusal::unsupported_media_type(other, "application/json")),
    }
}

async fn patch_body(request: Request<Incoming>) -> Result<Change> {
    let media_type = media_type(request.headers());
    if media_type.starts_with("application/apply-patch") {
        let message =
            "server-side apply is not supported by this server: use kubectl apply without --server-side";
        return Err(Refusal::new(415, "UnsupportedMediaType", message));
    }
    let format = Format::of(&media_type)
        .ok_or_else(|| Refusal::unsupported_media_type(&media_type, Format::MEDIA_TYPES))?;
    Ok(Change::Patch(format, parse(&read_body(request).await?)?))
}

/// From the body, or where there is none from the query.
async fn delete_options(query: &Query, request: Request<Incoming>) -> Result<DeleteOptions> {
    let (dry_run, grace) = (query.dry_run()?, query.number("gracePeriodSeconds")?);
    let policy = query.text("propagationPolicy").map(str::to_owned);
    let body = read_body(request).await?;
    let mut options: DeleteOptions = if body.is_empty() {
        DeleteOptions::default()
    } else {
        let value = parse(&body)?;
        serde_json::from_value(value)
            .map_err(|error| Refusal::bad_request(format!("the delete options cannot be decoded: {error}")))?
    };
    options.complete(dry_run, grace, policy)?;
    Ok(options)
}

async fn read_body(request: Request<Incoming>) -> Result<Bytes> {
    match Limited::new(request.into_body(), BODY_LIMIT).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            let message = format!("Request entity too large: limit is {BODY_LIMIT}");
            Err(Refusal::new(413, "RequestEntityTooLarge", message))
        }
        Err(error) => Err(Refusal::bad_request(format!("the body of the request cannot be read: {error}"))),
    }
}

fn parse(body: &[u8]) -> Result<Value> {
    serde_json::from_slice(body)
        .map_err(|error| Refusal::bad_request(format!("the body of the request is not valid JSON: {error}")))
}

fn media_type(headers: &HeaderMap) -> String {
    let value = header(headers, CONTENT_TYPE);
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

fn header(headers: &HeaderMap, name: hyper::header::HeaderName) -> &str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn shape(request: &Request<Incoming>, query: &Query) -> Result<Shape> {
    Shape::negotiate(header(request.headers(), ACCEPT), query.text("includeObject"))
}

// === responses out ===

fn deleted(target: &Target, written: &Written) -> Value {
    let resource = target.resource;
    let mut details =
        json!({"name": target.name, "kind": resource.plural, "uid": object::uid(&written.object)});
    if !resource.group.is_empty() {
        details["group"] = json!(resource.group);
    }
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}

fn wrote(code: StatusCode, resource: &Resource, shape: Shape, written: Written) -> Response<Body> {
    let object = read::shown(resource, written.object);
    let mut response = respond(code, &shape.object(resource, &object));
    for warning in written.warnings {
        let text = warning.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
            response.headers_mut().append(WARNING, value);
        }
    }
    response
}

fn respond(code: StatusCode, value: &Value) -> Response<Body> {
    respond_text(code, value.to_string())
}

fn respond_text(code: StatusCode, text: String) -> Response<Body> {
    response(code, "application/json", Full::new(Bytes::from(text)).boxed_unsync())
}

fn plain(code: StatusCode, text: &'static str) -> Response<Body> {
    response(code, "text/plain; charset=utf-8", Full::new(Bytes::from_static(text.as_bytes())).boxed_unsync())
}

fn response(code: StatusCode, media_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}
