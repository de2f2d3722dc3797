//! Callers that misuse their connection: idle, slow, never reading, too many, pipelined, or of another protocol. The service bounds each,
//! and other callers do not notice.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::support::{ORG, TestApp, outcomes, repeatable_series};

const TIME_OUT: Duration = Duration::from_secs(30);

async fn start(change: impl FnOnce(&mut coupon_issuer::config::HttpSettings)) -> TestApp {
    TestApp::start_with(&format!("{ORG}{}", repeatable_series(1, "")), |settings| change(&mut settings.http)).await
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

/// Reads until the service closes the connection.
async fn until_closed(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    // A reset counts as an end, too.
    drop(timeout(TIME_OUT, stream.read_to_end(&mut all)).await.unwrap());
    String::from_utf8(all).unwrap()
}

async fn read_one(stream: &mut TcpStream) -> String {
    read_if_open(stream).await.unwrap()
}

/// Reads once. `None`: the service has closed or reset the connection.
async fn read_if_open(stream: &mut TcpStream) -> Option<String> {
    let mut buffer = vec![0; 4096];
    let read = timeout(TIME_OUT, stream.read(&mut buffer)).await.unwrap().ok().filter(|read| *read > 0)?;
    Some(String::from_utf8_lossy(&buffer[..read]).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_without_a_request_is_closed() {
    let app = start(|http| http.header_timeout = Duration::from_millis(200)).await;
    assert_eq!(until_closed(&mut connect(app.address).await).await, "");

    // A caller that sends one byte at a time does not gain time.
    let mut slow = connect(app.address).await;
    let sending = async {
        for byte in request("slow").bytes() {
            if slow.write_all(&[byte]).await.is_err() {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
        panic!("the service read the whole request");
    };
    timeout(TIME_OUT, sending).await.unwrap();
    assert_eq!(app.count("select from coupon").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_may_be_idle_longer_than_the_header_time_out() {
    let app = start(|http| {
        // So far apart that a machine may stall for two seconds.
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
async fn pipelined_requests_are_answered_in_order() {
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_never_reads_is_cut() {
    let app = start(|http| http.write_timeout = Duration::from_millis(300)).await;
    let mut stream = connect(app.address).await;
    let thousand = "GET /.well-known/jwks.json HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1000);
    let writing = async { while stream.write_all(thousand.as_bytes()).await.is_ok() {} };
    timeout(TIME_OUT, writing).await.unwrap();
    assert_eq!(outcomes(&app.issue("another", &[1]).await), ["issued"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_beyond_the_maximum_is_closed_until_a_slot_is_free() {
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
    // The service notices the free slot a moment later. The connection that gets an answer has taken the slot.
    let until_answered = async {
        loop {
            if let Some(answered) = issue_over_new_connection(app.address).await {
                return answered;
            }
        }
    };
    let (_connection, answer) = timeout(TIME_OUT, until_answered).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"failureCount\":0"), "{answer}");
    assert_eq!(until_closed(&mut connect(app.address).await).await, "", "a second slot was free");
    assert_eq!(app.count("select from coupon").await, 1, "a closed connection got a coupon");
}

/// Requests a coupon over a new connection. `None`: the service closed it without an answer.
async fn issue_over_new_connection(address: SocketAddr) -> Option<(TcpStream, String)> {
    let mut stream = connect(address).await;
    // A closed connection fails here, or where the answer is read.
    stream.write_all(request("c").as_bytes()).await.ok()?;
    let answer = read_if_open(&mut stream).await?;
    Some((stream, answer))
}

/// The service speaks HTTP/1.1 only, so that no caller can open and reset streams.
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
async fn a_thousand_idle_and_half_open_connections_delay_no_request() {
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
    // They do not delay a stop beyond its time-out either.
    timeout(TIME_OUT, app.stop()).await.unwrap();
    drop(held);
}
