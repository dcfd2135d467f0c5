//! The little HTTP that tests need: one request, its body; and metrics as numbers.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// An answer that takes longer does not come.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// guest:guest
const GUEST: &str = "Z3Vlc3Q6Z3Vlc3Q=";

/// GET of `path` from `address` (`host:port`, or a URL of it) as guest; the body of a 200.
pub async fn get(address: &str, path: &str) -> Result<String> {
    let address = address.trim_start_matches("http://");
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Basic {GUEST}\r\nConnection: close\r\n\r\n"
    );
    let answer = tokio::time::timeout(ANSWER_TIME, async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        anyhow::Ok(answer)
    });
    let answer = String::from_utf8(answer.await.context("no answer in time")??)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no end of the answer's head")?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{path}: {head}\n{body}");
    Ok(body.to_owned())
}

/// What a process says of itself: each metric's values summed over its labels. Of a histogram there are `NAME_count`,
/// `NAME_sum` and, summed up, `NAME_bucket`.
pub async fn metrics(address: &str) -> Result<BTreeMap<String, f64>> {
    let text = get(address, "/metrics").await?;
    let mut sums = BTreeMap::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (series, value) = line.rsplit_once(' ').with_context(|| format!("not a sample: {line}"))?;
        let name = series.split('{').next().unwrap_or(series);
        *sums.entry(name.to_owned()).or_insert(0.0) += value.parse::<f64>()?;
    }
    Ok(sums)
}
