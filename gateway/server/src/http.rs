//! Management over HTTP: health, metrics, and the JSON that the `longshore` command shows.
//!
//! `/health/...` and `/metrics` are open to whoever reaches the port; everything under `/api/` needs an
//! administrator by HTTP Basic authentication. Answers of the API are JSON; an error is `{"error": "..."}` with a
//! fitting status.

use crate::GatewayState;
use axum::extract::{ConnectInfo, Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, put};
use axum::{Json, Router};
use longshore_broker::Admin;
use longshore_broker::api::{
    AuthError, BrokerError, ConnectionId, Destination, PermissionPatterns, QueueListing, UserInfo,
};
use serde::Deserialize;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Arc;

type Shared = State<Arc<GatewayState>>;
type Answer = Result<Json<Value>, Failure>;

/// An error on its way to the client.
struct Failure(StatusCode, String);

impl From<BrokerError> for Failure {
    fn from(error: BrokerError) -> Failure {
        let status = match &error {
            BrokerError::NotFound { .. } => StatusCode::NOT_FOUND,
            BrokerError::Invalid(_) | BrokerError::TooLarge { .. } => StatusCode::BAD_REQUEST,
            BrokerError::Unavailable(_) | BrokerError::NoSpace => StatusCode::SERVICE_UNAVAILABLE,
            BrokerError::AccessRefused { .. } | BrokerError::NotAllowed(_) => StatusCode::FORBIDDEN,
            _ => StatusCode::CONFLICT,
        };
        Failure(status, error.to_string())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "error": self.1 }))).into_response()
    }
}

/// The routes.
pub fn router(state: Arc<GatewayState>) -> Router {
    let api = Router::new()
        .route("/gateways", get(gateways))
        .route("/nodes", get(nodes))
        .route("/shards", get(shards))
        .route("/connections", get(connections))
        .route("/connections/{id}", delete(close_connection))
        .route("/vhosts", get(namespaces))
        .route("/vhosts/{namespace}", put(put_namespace).delete(delete_namespace))
        .route("/queues/{namespace}", get(queues))
        .route("/exchanges/{namespace}", get(exchanges))
        .route("/bindings/{namespace}", get(bindings))
        .route("/explain/{namespace}/{queue}", get(explain))
        .route("/users", get(users))
        .route("/users/{name}", put(put_user).delete(delete_user))
        .route("/permissions/{namespace}/{user}", put(put_permission).delete(delete_permission))
        .route_layer(axum::middleware::from_fn_with_state(state.clone(), administrators_only));
    Router::new()
        .route("/health/live", get(|| async { "ok\n" }))
        .route("/health/ready", get(ready))
        .route("/metrics", get(metrics))
        .nest("/api", api)
        .with_state(state)
}

async fn administrators_only(
    State(state): Shared,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    request: Request,
    next: Next,
) -> Response {
    let Some((user, password)) = basic_credentials(&headers) else {
        return ask_for_credentials("an administrator's name and password are needed");
    };
    match state.broker.authenticate(&user, password.as_bytes(), peer).await {
        Ok(identity) if identity.administrator => next.run(request).await,
        Ok(_) => Failure(StatusCode::FORBIDDEN, "not an administrator".into()).into_response(),
        Err(AuthError::Throttled) => {
            Failure(StatusCode::TOO_MANY_REQUESTS, AuthError::Throttled.to_string()).into_response()
        }
        Err(AuthError::Unavailable) => {
            Failure(StatusCode::SERVICE_UNAVAILABLE, AuthError::Unavailable.to_string()).into_response()
        }
        Err(error) => ask_for_credentials(&error.to_string()),
    }
}

fn ask_for_credentials(why: &str) -> Response {
    let mut response = Failure(StatusCode::UNAUTHORIZED, why.to_owned()).into_response();
    let challenge = header::HeaderValue::from_static("Basic realm=\"longshore\"");
    response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    response
}

fn basic_credentials(headers: &HeaderMap) -> Option<(String, String)> {
    let text = headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Basic ")?;
    let bytes = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text.trim()).ok()?;
    let (user, password) =
        String::from_utf8(bytes).ok()?.split_once(':').map(|(u, p)| (u.to_owned(), p.to_owned()))?;
    Some((user, password))
}

async fn ready(State(state): Shared) -> Response {
    if state.is_ready() {
        "ok\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready: no lease from the storage tier, or stopping\n")
            .into_response()
    }
}

async fn metrics(State(state): Shared) -> String {
    state.metrics.text()
}

fn admin(state: &GatewayState) -> Admin {
    state.broker.admin()
}

async fn gateways(State(state): Shared) -> Answer {
    let list = admin(&state).gateways();
    let shown =
        list.iter().map(|g| json!({"session": g.session.0, "name": g.name, "addresses": g.addresses}));
    Ok(Json(shown.collect()))
}

async fn nodes(State(state): Shared) -> Answer {
    let shown = admin(&state).nodes().into_iter().map(|n| {
        json!({
            "node": n.id.0, "address": n.address, "zone": n.zone, "version": n.version, "connected": n.connected,
            "shards": n.shards, "leads": n.leads,
        })
    });
    Ok(Json(shown.collect()))
}

async fn shards(State(state): Shared) -> Answer {
    let shown = admin(&state)
        .shards()
        .into_iter()
        .map(|(shard, leader, nodes)| json!({"shard": shard.0, "leader_node": leader, "nodes": nodes}));
    Ok(Json(shown.collect()))
}

async fn connections(State(state): Shared) -> Answer {
    let shown = admin(&state).connections().into_iter().map(|c| {
        json!({
            "id": c.id.0, "user": c.user, "vhost": c.namespace, "protocol": c.info.protocol,
            "peer": c.info.peer.to_string(), "client": c.info.client, "tls": c.info.tls, "consumers": c.consumers,
        })
    });
    Ok(Json(shown.collect()))
}

async fn close_connection(State(state): Shared, Path(id): Path<u64>) -> Answer {
    if admin(&state).close_connection(ConnectionId(id), "closed by an administrator") {
        Ok(Json(json!({"closed": id})))
    } else {
        Err(Failure(StatusCode::NOT_FOUND, format!("no connection {id} on this gateway")))
    }
}

async fn namespaces(State(state): Shared) -> Answer {
    Ok(Json(admin(&state).namespaces().into_iter().map(|name| json!({"name": name})).collect()))
}

async fn put_namespace(State(state): Shared, Path(name): Path<String>) -> Answer {
    admin(&state).put_namespace(&name).await?;
    Ok(Json(json!({"name": name})))
}

async fn delete_namespace(State(state): Shared, Path(name): Path<String>) -> Answer {
    admin(&state).delete_namespace(&name).await?;
    Ok(Json(json!({"deleted": name})))
}

#[derive(Deserialize)]
struct QueuesQuery {
    #[serde(default)]
    counts: Option<bool>,
}

async fn queues(
    State(state): Shared,
    Path(namespace): Path<String>,
    Query(query): Query<QueuesQuery>,
) -> Answer {
    let list = admin(&state).queues(&namespace, query.counts.unwrap_or(true)).await?;
    Ok(Json(list.iter().map(show_queue).collect()))
}

fn show_queue(queue: &QueueListing) -> Value {
    let info = &queue.info;
    let mut shown = json!({
        "name": info.name, "type": info.kind, "durable": info.durable, "exclusive": info.exclusive,
        "auto_delete": info.auto_delete,
    });
    if let Some(counts) = &queue.counts {
        shown["messages"] = (counts.ready + counts.unacked).into();
        shown["messages_ready"] = counts.ready.into();
        shown["messages_unacknowledged"] = counts.unacked.into();
        shown["consumers"] = counts.consumers.into();
        shown["first_offset"] = counts.first.into();
        shown["next_offset"] = counts.next.into();
    }
    shown["shard"] = queue.shard.0.into();
    shown["log"] = info.log.0.into();
    shown
}

async fn exchanges(State(state): Shared, Path(namespace): Path<String>) -> Answer {
    let list = admin(&state).exchanges(&namespace)?;
    let shown = list.iter().map(|e| {
        json!({
            "name": e.name, "type": e.kind.as_str(), "durable": e.durable, "auto_delete": e.auto_delete,
            "internal": e.internal, "alternate": e.alternate,
        })
    });
    Ok(Json(shown.collect()))
}

async fn bindings(State(state): Shared, Path(namespace): Path<String>) -> Answer {
    let list = admin(&state).bindings(&namespace)?;
    let shown = list.iter().map(|b| {
        let (kind, name) = match &b.destination {
            Destination::Queue(name) => ("queue", name),
            Destination::Exchange(name) => ("exchange", name),
        };
        json!({
            "source": b.source, "destination_type": kind, "destination": name,
            "routing_key": String::from_utf8_lossy(&b.routing_key),
        })
    });
    Ok(Json(shown.collect()))
}

async fn explain(State(state): Shared, Path((namespace, queue)): Path<(String, String)>) -> Answer {
    Ok(Json(admin(&state).explain(&namespace, &queue).await?))
}

async fn users(State(state): Shared) -> Answer {
    let shown = admin(&state).users().into_iter().map(|user| {
        let permissions: Vec<Value> = user
            .permissions
            .iter()
            .map(|(vhost, p)| json!({"vhost": vhost, "configure": p.configure, "write": p.write, "read": p.read}))
            .collect();
        json!({
            "name": user.name, "administrator": user.administrator, "default_vhost": user.default_namespace,
            "loopback_only": user.loopback_only, "permissions": permissions,
        })
    });
    Ok(Json(shown.collect()))
}

/// A user as an administrator sets it; what is left out stays, for a new user it is empty or false.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UserBody {
    password: Option<String>,
    administrator: Option<bool>,
    default_vhost: Option<String>,
    loopback_only: Option<bool>,
}

async fn put_user(State(state): Shared, Path(name): Path<String>, Json(body): Json<UserBody>) -> Answer {
    let admin = admin(&state);
    let old = admin.users().into_iter().find(|user| user.name == name);
    let old = old.unwrap_or(UserInfo {
        name: name.clone(),
        administrator: false,
        default_namespace: String::new(),
        loopback_only: false,
        permissions: Vec::new(),
    });
    let user = UserInfo {
        administrator: body.administrator.unwrap_or(old.administrator),
        default_namespace: body.default_vhost.unwrap_or(old.default_namespace),
        loopback_only: body.loopback_only.unwrap_or(old.loopback_only),
        ..old
    };
    admin.put_user(user, body.password.as_deref().map(str::as_bytes)).await?;
    Ok(Json(json!({"name": name})))
}

async fn delete_user(State(state): Shared, Path(name): Path<String>) -> Answer {
    admin(&state).delete_user(&name).await?;
    Ok(Json(json!({"deleted": name})))
}

/// Regular expressions as RabbitMQ's.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PermissionBody {
    configure: String,
    write: String,
    read: String,
}

async fn put_permission(
    State(state): Shared,
    Path((namespace, user)): Path<(String, String)>,
    Json(body): Json<PermissionBody>,
) -> Answer {
    let patterns = PermissionPatterns { configure: body.configure, write: body.write, read: body.read };
    admin(&state).set_permission(&user, &namespace, Some(patterns)).await?;
    Ok(Json(json!({"user": user, "vhost": namespace})))
}

async fn delete_permission(State(state): Shared, Path((namespace, user)): Path<(String, String)>) -> Answer {
    admin(&state).set_permission(&user, &namespace, None).await?;
    Ok(Json(json!({"user": user, "vhost": namespace})))
}
