//! Callers that misuse their connection: idle, slow, never reading, too many, several requests at once, another protocol.
//! Each is bounded, and no other caller notices.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::support::{ORG, TestApp, outcomes, series};

const PATIENCE: Duration = Duration::from_secs(30);

async fn start(change: impl FnOnce(&mut coupon_issuer::config::HttpSettings)) -> TestApp {
    TestApp::start_with(&format!("{ORG}{}", series(1, "")), |settings| change(&mut settings.http)).await
}

fn request(customer: &str) -> String {
    let body = json!({"seriesIds": [1], "customer": {"id": customer}}).to_string();
    format!(
        "POST /v2/coupon/bulk/issue HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
         Authorization: Basic c3RvcmUuc2VydmVyOnNlcnZlcjEyMw==\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

async fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.unwrap()
}

/// All that comes until the service closes the connection.
async fn until_closed(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    // Cut hard or closed in order is all the same.
    drop(timeout(PATIENCE, stream.read_to_end(&mut all)).await.unwrap());
    String::from_utf8(all).unwrap()
}

async fn read_one(stream: &mut TcpStream) -> String {
    read_if_open(stream).await.unwrap()
}

/// What comes next, unless the connection is closed instead, hard or in order.
async fn read_if_open(stream: &mut TcpStream) -> Option<String> {
    let mut buffer = vec![0; 4096];
    let read = timeout(PATIENCE, stream.read(&mut buffer)).await.unwrap().ok().filter(|read| *read > 0)?;
    Some(String::from_utf8_lossy(&buffer[..read]).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_without_a_request_is_closed() {
    let app = start(|http| http.header_timeout = Duration::from_millis(200)).await;
    assert_eq!(until_closed(&mut connect(app.address).await).await, "");

    // One byte at a time does not help.
    let mut slow = connect(app.address).await;
    let dripping = async {
        for byte in request("slow").bytes() {
            if slow.write_all(&[byte]).await.is_err() {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
        panic!("all of it was taken");
    };
    timeout(PATIENCE, dripping).await.unwrap();
    assert_eq!(app.count("select from coupon").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_may_be_idle_between_requests_for_its_own_time() {
    let app = start(|http| {
        // So far apart that a machine which stands still for two seconds confuses none with another.
        http.header_timeout = Duration::from_secs(3);
        http.idle_timeout = Duration::from_secs(6);
    })
    .await;
    let mut stream = connect(app.address).await;
    stream.write_all(request("first").as_bytes()).await.unwrap();
    assert!(read_one(&mut stream).await.starts_with("HTTP/1.1 200"));
    sleep(Duration::from_millis(3500)).await;
    stream.write_all(request("second").as_bytes()).await.unwrap();
    assert!(read_one(&mut stream).await.starts_with("HTTP/1.1 200"));
    assert_eq!(until_closed(&mut stream).await, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_in_one_breath_are_answered_in_order() {
    let app = start(|_| {}).await;
    let mut stream = connect(app.address).await;
    let mut all: String = (0..200).map(|number| request(&format!("c{number}"))).collect();
    all.push_str("GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(all.as_bytes()).await.unwrap();
    let answers = until_closed(&mut stream).await;
    assert_eq!(answers.matches("HTTP/1.1 200").count(), 201);
    assert!(answers.trim_end().ends_with("ok"), "{}", &answers[answers.len() - 200..]);
    assert_eq!(app.count("select from coupon").await, 200);
}

/// It asks for more than it is ever going to read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_never_reads_is_cut() {
    let app = start(|http| http.write_timeout = Duration::from_millis(300)).await;
    let mut stream = connect(app.address).await;
    let thousand = "GET /.well-known/jwks.json HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1000);
    let asking = async { while stream.write_all(thousand.as_bytes()).await.is_ok() {} };
    timeout(PATIENCE, asking).await.unwrap();
    assert_eq!(outcomes(&app.issue("another", &[1]).await), ["issued"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_the_most_connections_another_is_closed_until_one_is_free() {
    let app = start(|http| http.max_connections = 20).await;
    let mut idle = Vec::new();
    for _ in 0..20 {
        let mut stream = connect(app.address).await;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        assert!(read_one(&mut stream).await.ends_with("ok\n"));
        idle.push(stream);
    }
    assert_eq!(until_closed(&mut connect(app.address).await).await, "");
    idle.pop();
    // The service learns a moment later that a place is free. Who is answered then has taken it, and keeps it.
    let asking = async {
        loop {
            if let Some(answered) = issue_over_another(app.address).await {
                return answered;
            }
        }
    };
    let (_taken, answer) = timeout(PATIENCE, asking).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"failureCount\":0"), "{answer}");
    assert_eq!(until_closed(&mut connect(app.address).await).await, "", "it was the only one");
    assert_eq!(app.count("select from coupon").await, 1, "who was closed was not served");
}

/// Asks for a coupon over a connection of its own. `None`: it was closed without an answer.
async fn issue_over_another(address: SocketAddr) -> Option<(TcpStream, String)> {
    let mut stream = connect(address).await;
    // That it is closed is seen here, or where the answer is read.
    stream.write_all(request("c").as_bytes()).await.ok()?;
    let answer = read_if_open(&mut stream).await?;
    Some((stream, answer))
}

/// There is no stream to open and reset: the service speaks HTTP/1.1 alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_2_is_refused_at_once() {
    let app = start(|_| {}).await;
    let mut stream = connect(app.address).await;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
    let answer = until_closed(&mut stream).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400") || answer.starts_with("HTTP/1.1 505"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_idle_and_half_open_connections_hold_up_nobody() {
    let app = start(|http| http.shutdown_timeout = Duration::from_secs(2)).await;
    let mut held = Vec::new();
    for number in 0..1000 {
        let mut stream = connect(app.address).await;
        if number % 2 == 0 {
            stream.write_all(&request("half").as_bytes()[..100]).await.unwrap();
        }
        held.push(stream);
    }
    for number in 0..50 {
        assert_eq!(outcomes(&app.issue(&number.to_string(), &[1]).await), ["issued"]);
    }
    // They do not hold up a stop beyond its time-out, either.
    timeout(PATIENCE, app.stop()).await.unwrap();
    drop(held);
}
