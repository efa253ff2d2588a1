//! What is urgent overtakes what waits, how little stands in the kernel, and what a configured limit does.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use socket2::SockRef;
use switchback::config::{Config, Rate};
use switchback::io::packet::{self, PACKET_MAX, Publish};
use switchback_control::{Attempt, Event, Lane, Seq, Version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};
use tokio::time::{Instant, sleep};

use crate::bench::*;

const CRITICAL: Lane = Lane(1);
const BULK: Lane = Lane(2);
/// No limit.
const FAST: usize = 1 << 30;

/// Payloads, and when they were there.
type Came = Arc<Mutex<Vec<(Instant, Vec<u8>)>>>;

/// A server that reads no faster than so many bytes a second, acknowledges everything, and notes what came when.
struct Slow {
    port: u16,
    came: Came,
}

impl Slow {
    async fn start(rate: usize) -> Slow {
        let socket = TcpSocket::new_v4().unwrap();
        // As on a cable: what the kernels of both ends hold is little, and segments are those of an Ethernet.
        if rate < FAST {
            socket.set_recv_buffer_size(4096).unwrap();
        }
        SockRef::from(&socket).set_tcp_mss(1448).unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(8).unwrap();
        let slow = Slow { port: listener.local_addr().unwrap().port(), came: Arc::default() };
        tokio::spawn(serve(listener, rate, slow.came.clone()));
        slow
    }

    fn config(&self) -> Config {
        let mut config = config(self.port);
        config.cloud.base = String::new();
        config
    }

    fn count(&self, from: Instant, to: Instant) -> (usize, usize) {
        let came = self.came.lock().unwrap();
        let within = came.iter().filter(|(at, _)| (from..to).contains(at));
        within.fold((0, 0), |(count, bytes), (_, payload)| (count + 1, bytes + payload.len()))
    }
}

async fn serve(listener: TcpListener, rate: usize, came: Came) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let (mut buffer, mut free) = (Vec::new(), Instant::now());
    loop {
        let mut piece = vec![0; if rate < FAST { 1448 } else { 65_536 }];
        let Ok(length @ 1..) = stream.read(&mut piece).await else { return };
        // What a late timer cost is made up for.
        let earliest = Instant::now() - Duration::from_millis(100);
        free = free.max(earliest) + Duration::from_secs_f64(length as f64 / rate as f64);
        tokio::time::sleep_until(free).await;
        buffer.extend(&piece[..length]);
        while let Some(found) = packet::take(&mut buffer, Version::V5, PACKET_MAX).unwrap() {
            match Publish::from_packet(found) {
                Ok(publish) => {
                    came.lock().unwrap().push((Instant::now(), publish.payload));
                    let id = publish.id.unwrap().to_be_bytes();
                    let _ = stream.write_all(&[0x40, 2, id[0], id[1]]).await;
                }
                Err(_) => stream.write_all(&[0x20, 3, 0, 0, 0]).await.unwrap(),
            }
        }
    }
}

async fn load(rig: &mut Rig, count: u64, size: usize) -> Attempt {
    let (attempt, _) = rig.open(Version::V5).await;
    for n in 1..=count {
        let seq = rig.stack.put(Seq::new(BULK, n).0, "t", &vec![b'b'; size], 1);
        rig.cloud.transmit(attempt, seq, false);
    }
    attempt
}

#[tokio::test]
async fn a_critical_message_overtakes_a_backlog_on_a_slow_uplink_that_stays_busy() {
    const RATE: usize = 64_000;
    for size in [200, 5_000] {
        let slow = Slow::start(RATE).await;
        let mut rig = Rig::new(slow.config());
        let attempt = load(&mut rig, 600_000 / size as u64, size).await;
        sleep(Duration::from_secs(2)).await;
        let sent = |rig: &Rig| rig.cloud.live(attempt).unwrap().bytes_sent;
        let (begin, before) = (Instant::now(), sent(&rig));
        let mut longest = Duration::ZERO;
        for n in 0..8 {
            sleep(Duration::from_millis(300)).await;
            let asked = Instant::now();
            let seq = rig.stack.put(Seq::new(CRITICAL, n).0, "c", b"now", 1);
            rig.cloud.transmit(attempt, seq, false);
            rig.until(|event| *event == Event::Acked { attempt, seq }).await;
            longest = longest.max(asked.elapsed());
        }
        let part = (sent(&rig) - before) as f64 / (RATE as f64 * begin.elapsed().as_secs_f64());
        println!("{size} bytes each: critical acknowledged after {longest:?}, {:.0} % of the rate", part * 100.0);
        assert!(longest < Duration::from_secs(1), "{longest:?}");
        // A busy machine reads late.
        assert!(part > 0.85, "{part}");
    }
}

#[tokio::test]
async fn a_limit_of_the_uplink_delays_and_drops_nothing() {
    for (rate, least, most) in
        [(Rate { bytes: Some(20_000), messages: None }, 17, 22), (Rate { bytes: None, messages: Some(15) }, 14, 16)]
    {
        let slow = Slow::start(10_000_000).await;
        let mut config = slow.config();
        config.classes[0].rate = rate;
        let mut rig = Rig::new(config);
        let begin = Instant::now();
        load(&mut rig, 60, 900).await;
        let seqs = (1..=60).map(|n| Seq::new(BULK, n)).collect();
        let from = begin + Duration::from_millis(500);
        rig.acked(seqs).await;
        let (count, _) = slow.count(from, from + Duration::from_secs(2));
        assert!((least * 2..=most * 2).contains(&count), "{count} in 2 s with {rate:?}");
    }
}

#[tokio::test]
async fn a_fast_path_is_not_slowed() {
    let slow = Slow::start(FAST).await;
    let mut rig = Rig::new(slow.config());
    let begin = Instant::now();
    load(&mut rig, 4_000, 2_000).await;
    rig.acked((1..=4_000).map(|n| Seq::new(BULK, n)).collect()).await;
    let rate = 8_000_000.0 / begin.elapsed().as_secs_f64();
    println!("{rate:.0} bytes a second in the development build");
    assert!(rate > 1_000_000.0, "{rate}");
}

/// On a loopback that `tc` has made slow, in a namespace of its own: the queue is then in the network, as it is behind a
/// modem. `unshare -n sh -c 'ip link set lo mtu 1500 up; tc qdisc add dev lo root tbf rate 512kbit burst 3000 latency 9s;
/// TEST --ignored --nocapture modem'`.
#[tokio::test]
#[ignore = "wants a loopback made slow"]
async fn behind_a_modem_with_a_deep_queue() {
    let slow = Slow::start(FAST).await;
    let mut rig = Rig::new(slow.config());
    let attempt = load(&mut rig, 400, 5_000).await;
    sleep(Duration::from_secs(3)).await;
    let sent = |rig: &Rig| rig.cloud.live(attempt).unwrap().bytes_sent;
    let (begin, before, mut times) = (Instant::now(), sent(&rig), Vec::new());
    for n in 0..20 {
        sleep(Duration::from_millis(500)).await;
        let asked = Instant::now();
        let seq = rig.stack.put(Seq::new(CRITICAL, n).0, "c", b"now", 1);
        rig.cloud.transmit(attempt, seq, false);
        rig.until(|event| *event == Event::Acked { attempt, seq }).await;
        times.push(asked.elapsed());
    }
    let rate = (sent(&rig) - before) as f64 / begin.elapsed().as_secs_f64();
    times.sort();
    println!("{rate:.0} bytes a second, critical acknowledged after {:?}, at worst {:?}", times[10], times[19]);
    assert!(times[19] < Duration::from_secs(1) && rate > 0.9 * 64_000.0 * 0.93);
}
