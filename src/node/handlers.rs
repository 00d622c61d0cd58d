//! What probes and hooks do: a command in the container, an HTTP request, a connection, a gRPC health check.
//! Source: kubelet `pkg/probe/{exec,http,tcp,grpc}`, `pkg/kubelet/lifecycle/handlers.go`.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    process::Stdio,
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use http::{Request, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::{
    api::core::v1::{Container as ContainerSpec, ExecAction, GRPCAction, HTTPGetAction, LifecycleHandler, Probe, SleepAction, TCPSocketAction},
    apimachinery::pkg::util::intstr::IntOrString,
};
use tokio::{io::AsyncReadExt, net::TcpStream, time::timeout};

use super::{
    http::{Trust, send},
    runtime::{Container, Runtime},
};
use crate::base::Tasks;

/// `maxReadLength` of a command's output.
const OUTPUT_MAX: u64 = 10 << 10;
/// `maxRespBodyLength`.
const BODY_MAX: usize = 10 << 10;
/// As many redirects does Go's client follow.
const REDIRECTS_MAX: usize = 10;
/// The path of gRPC's health check and the answer `SERVING`.
const HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";
const SERVING: u64 = 1;

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    Exec(ExecAction),
    Http(HTTPGetAction),
    Tcp(TCPSocketAction),
    Grpc(GRPCAction),
    Sleep(SleepAction),
}

impl Action {
    pub fn of_probe(probe: &Probe) -> Option<Self> {
        let exec = probe.exec.clone().map(Self::Exec);
        let http = || probe.http_get.clone().map(Self::Http);
        let tcp = || probe.tcp_socket.clone().map(Self::Tcp);
        exec.or_else(http).or_else(tcp).or_else(|| probe.grpc.clone().map(Self::Grpc))
    }

    pub fn of_hook(hook: &LifecycleHandler) -> Option<Self> {
        let exec = hook.exec.clone().map(Self::Exec);
        let http = || hook.http_get.clone().map(Self::Http);
        let sleep = || hook.sleep.clone().map(Self::Sleep);
        exec.or_else(http).or_else(sleep).or_else(|| hook.tcp_socket.clone().map(Self::Tcp))
    }
}

/// What an action is done to, and with.
pub struct Target<'a> {
    pub runtime: &'a Runtime,
    pub tasks: &'a Tasks,
    pub container: &'a Container,
    pub spec: &'a ContainerSpec,
    pub address: Option<IpAddr>,
    /// For probes; hooks have none but their pod's grace period.
    pub within: Duration,
}

/// The texts say what went wrong, or what is to be warned of, in the kubelet's words.
pub type Outcome = Result<Option<String>, String>;

impl Target<'_> {
    pub async fn act(&self, action: &Action) -> Outcome {
        match action {
            Action::Exec(exec) => self.exec(exec).await,
            Action::Http(get) => self.http(get).await,
            Action::Tcp(tcp) => self.tcp(tcp).await,
            Action::Grpc(grpc) => self.grpc(grpc).await,
            Action::Sleep(sleep) => {
                tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))).await;
                Ok(None)
            }
        }
    }

    async fn exec(&self, exec: &ExecAction) -> Outcome {
        let command = self.runtime.exec(self.container, exec.command.as_deref().unwrap_or_default(), false);
        let mut command = tokio::process::Command::from(command.map_err(|why| why.to_string())?);
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn();
        let mut child = spawned.map_err(|why| why.to_string())?;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let finished = timeout(self.within, async {
            let (out, err, status) = tokio::join!(read_some(out), read_some(err), child.wait());
            (out + &err, status)
        });
        match finished.await {
            Err(_) => Err(format!("command timed out: {:?} timed out after {}s", exec.command.clone().unwrap_or_default().join(" "), self.within.as_secs())),
            Ok((_, Ok(status))) if status.success() => Ok(None),
            Ok((output, Ok(_))) => Err(output),
            Ok((_, Err(why))) => Err(why.to_string()),
        }
    }

    fn place(&self, host: Option<&str>, port: &IntOrString) -> Result<(String, u16), String> {
        let number = match port {
            IntOrString::Int(number) => u16::try_from(*number).ok(),
            IntOrString::String(name) => name.parse().ok().or_else(|| {
                let named = self.spec.ports.iter().flatten().find(|it| it.name.as_deref() == Some(name))?;
                u16::try_from(named.container_port).ok()
            }),
        };
        let number = number.filter(|it| *it > 0).ok_or_else(|| format!("invalid port: {port:?}"))?;
        let host = host.filter(|it| !it.is_empty()).map(str::to_owned).or_else(|| self.address.map(|it| it.to_string()));
        Ok((host.ok_or("the pod has no address")?, number))
    }

    async fn http(&self, get: &HTTPGetAction) -> Outcome {
        let (host, port) = self.place(get.host.as_deref(), &get.port)?;
        let scheme = get.scheme.as_deref().unwrap_or("HTTP").to_ascii_lowercase();
        let authority = join(&host, port);
        let path = get.path.as_deref().unwrap_or_default();
        let url = format!("{scheme}://{authority}{}{path}", if path.starts_with('/') { "" } else { "/" });
        let late = || format!("Get {url:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)");
        timeout(self.within, self.follow(get, url.clone(), &host)).await.unwrap_or_else(|_| Err(late()))
    }

    /// Asks, and follows redirects as long as they stay with `host`; one that leads elsewhere is a sign of life (`RedirectChecker`).
    async fn follow(&self, get: &HTTPGetAction, mut url: String, host: &str) -> Outcome {
        for _ in 0..=REDIRECTS_MAX {
            let uri: Uri = url.parse().map_err(|why| format!("{why}"))?;
            let authority = uri.authority().map(|it| it.to_string()).unwrap_or_default();
            let response = send(self.tasks, request(get, &url)?, Trust::Anyone).await.map_err(|why| dial_error(&url, &authority, &why))?;
            let status = response.status();
            let place = response.headers().get(header::LOCATION).and_then(|it| it.to_str().ok()).map(|it| redirected(&uri, it));
            let body = Limited::new(response.into_body(), BODY_MAX).collect().await.map(|it| it.to_bytes()).unwrap_or_default();
            match place {
                Some(place) if status.is_redirection() && place.parse::<Uri>().is_ok_and(|it| it.host() == Some(host)) => url = place,
                _ if status.is_redirection() => return Ok(Some(format!("Probe terminated redirects, Response body: {}", String::from_utf8_lossy(&body)))),
                _ if status.is_success() => return Ok(None),
                _ => return Err(format!("HTTP probe failed with statuscode: {}", status.as_u16())),
            }
        }
        Err(format!("Get {url:?}: stopped after {REDIRECTS_MAX} redirects"))
    }

    async fn tcp(&self, tcp: &TCPSocketAction) -> Outcome {
        let (host, port) = self.place(tcp.host.as_deref(), &tcp.port)?;
        let address = join(&host, port);
        match timeout(self.within, TcpStream::connect((host.as_str(), port))).await {
            Ok(Ok(_)) => Ok(None),
            Ok(Err(why)) => Err(format!("dial tcp {address}: connect: {}", reason(&why))),
            Err(_) => Err(format!("dial tcp {address}: i/o timeout")),
        }
    }

    async fn grpc(&self, grpc: &GRPCAction) -> Outcome {
        let (host, port) = self.place(None, &IntOrString::Int(grpc.port))?;
        let address = join(&host, port);
        let service = grpc.service.clone().unwrap_or_default();
        match timeout(self.within, self.health(&host, port, &service)).await {
            Err(_) => Err(format!("timeout: failed to connect service {address:?} within {}s: context deadline exceeded", self.within.as_secs())),
            Ok(Err(why)) => Err(format!("error: failed to connect to service {address:?}: {why}")),
            Ok(Ok(SERVING)) => Ok(None),
            Ok(Ok(status)) => Err(format!("service unhealthy (responded with {:?})", ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"].get(status as usize).unwrap_or(&"UNKNOWN"))),
        }
    }

    /// Calls `grpc.health.v1.Health/Check`; the status of its answer. Both messages are simple enough to be written by hand.
    async fn health(&self, host: &str, port: u16, service: &str) -> io::Result<u64> {
        let stream = TcpStream::connect((host, port)).await?;
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (mut sender, connection) = handshake.await.map_err(io::Error::other)?;
        self.tasks.spawn("grpc-connection", async move {
            let _ = connection.await;
        });
        let uri = Uri::builder().scheme("http").authority(join(host, port)).path_and_query(HEALTH_CHECK).build().map_err(io::Error::other)?;
        let request = Request::post(uri).header(header::CONTENT_TYPE, "application/grpc").header(header::TE, "trailers");
        let request = request.body(Full::<Bytes>::new(health_request(service))).map_err(io::Error::other)?;
        let response = sender.send_request(request).await.map_err(io::Error::other)?;
        let body = response.into_body().collect().await.map_err(io::Error::other)?;
        let code = body.trailers().and_then(|it| it.get("grpc-status")?.to_str().ok()).unwrap_or("0").to_owned();
        match code.as_str() {
            "0" => Ok(health_status(&body.to_bytes())),
            "12" => Err(io::Error::other("error: this server does not implement the grpc health protocol (grpc.health.v1.Health)")),
            code => Err(io::Error::other(format!("health rpc failed with code {code}"))),
        }
    }
}

fn request(get: &HTTPGetAction, url: &str) -> Result<Request<Full<Bytes>>, String> {
    let mut request = Request::get(url).body(Full::default()).map_err(|why| why.to_string())?;
    let headers = request.headers_mut();
    headers.insert(header::USER_AGENT, http::HeaderValue::from_static("kube-probe/1.36"));
    headers.insert(header::ACCEPT, http::HeaderValue::from_static("*/*"));
    for own in get.http_headers.iter().flatten() {
        let (Ok(name), Ok(value)) = (http::HeaderName::try_from(&own.name), http::HeaderValue::try_from(&own.value)) else { continue };
        headers.insert(name, value);
    }
    Ok(request)
}

/// Where a redirect of `from` leads.
fn redirected(from: &Uri, place: &str) -> String {
    let (scheme, authority) = (from.scheme_str().unwrap_or("http"), from.authority().map_or("", |it| it.as_str()));
    match place {
        whole if whole.contains("://") => whole.to_owned(),
        other if other.starts_with("//") => format!("{scheme}:{other}"),
        path if path.starts_with('/') => format!("{scheme}://{authority}{path}"),
        part => format!("{scheme}://{authority}{}/{part}", from.path().rsplit_once('/').map_or("", |it| it.0)),
    }
}

/// A message of one string field, behind the five bytes that gRPC puts before it.
fn health_request(service: &str) -> Bytes {
    let length = u8::try_from(service.len()).unwrap_or(u8::MAX).min(120);
    let mut message = BytesMut::new();
    message.put_u8(0);
    message.put_u32(if length == 0 { 0 } else { u32::from(length) + 2 });
    if length > 0 {
        message.put_slice(&[0x0a, length]);
        message.put_slice(&service.as_bytes()[..usize::from(length)]);
    }
    message.freeze()
}

/// The enumeration in field 1; absent is 0.
fn health_status(message: &[u8]) -> u64 {
    match message.get(5..) {
        Some([0x08, status, ..]) => u64::from(*status),
        _ => 0,
    }
}

fn join(host: &str, port: u16) -> String {
    host.parse::<IpAddr>().map_or_else(|_| format!("{host}:{port}"), |it| SocketAddr::new(it, port).to_string())
}

async fn read_some(pipe: Option<impl tokio::io::AsyncRead + Unpin>) -> String {
    let Some(mut pipe) = pipe else { return String::new() };
    let mut text = Vec::new();
    let _ = (&mut pipe).take(OUTPUT_MAX).read_to_end(&mut text).await;
    // The rest is read too, so that the command does not wait for a reader.
    let _ = tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await;
    String::from_utf8_lossy(&text).into_owned()
}

/// Go's words for a connection that failed, which tools look for.
fn dial_error(url: &str, address: &str, why: &io::Error) -> String {
    match why.kind() {
        io::ErrorKind::Other => format!("Get {url:?}: {why}"),
        _ => format!("Get {url:?}: dial tcp {address}: connect: {}", reason(why)),
    }
}

fn reason(why: &io::Error) -> String {
    match why.raw_os_error() {
        Some(number) => nix::errno::Errno::from_raw(number).desc().to_lowercase(),
        None => why.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_checks_are_written_as_grpc_has_them() {
        assert_eq!(&health_request("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&health_request("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(health_status(&[0, 0, 0, 0, 2, 8, 1]), SERVING);
        assert_eq!(health_status(&[0, 0, 0, 0, 0]), 0);
    }

    #[test]
    fn redirects_lead_from_where_they_are_met() {
        let from: Uri = "http://10.0.0.1:80/a/b?c=d".parse().expect("a URL");
        let cases = [("/x", "http://10.0.0.1:80/x"), ("x", "http://10.0.0.1:80/a/x"), ("//h/x", "http://h/x"), ("https://h:1/x", "https://h:1/x")];
        for (place, expected) in cases {
            assert_eq!(redirected(&from, place), expected);
        }
    }

    #[test]
    fn errors_are_in_gos_words() {
        let refused = io::Error::from_raw_os_error(libc::ECONNREFUSED);
        assert_eq!(dial_error("http://a:1/", "a:1", &refused), "Get \"http://a:1/\": dial tcp a:1: connect: connection refused");
    }
}
