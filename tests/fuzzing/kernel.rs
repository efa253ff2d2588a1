//! What the kernel and name servers say, and the resolver's two files.

use std::net::IpAddr;

use simple_dns::rdata::{A, CNAME, RData};
use simple_dns::{CLASS, Name as DnsName, Packet, PacketFlag, ResourceRecord, TYPE};

use super::{Shape, Target, as_it_is, mixed, shape_of};
use crate::io::resolver::question::{Query, Said};
use crate::io::resolver::{listed, name_servers};
use crate::io::rtnetlink::wire::{self, Message};

pub const NETLINK: Target = Target {
    name: "netlink",
    examples: datagrams,
    words: &[
        &[16, 0, 0, 0],
        &[20, 0, 0, 0],
        &[3, 0],
        &[8, 0, 3, 0, b'l', b'o', 0, 0],
        &[4, 0, 3, 0],
        &[8, 0, 2, 0, 192, 0, 2, 1],
        &[0xff, 0xff, 3, 0],
    ],
    repair: right_length,
    read: datagram,
    memory: (64, 64 * 1024),
};

pub const ANSWERS: Target = Target {
    name: "name_answers",
    examples: answers,
    words: &[&[0xc0, 12], &[0xc0, 0], &[0, 1, 0, 1], &[0, 5, 0, 1], &[0, 28, 0, 1], &[63], &[0xff, 0xff], b"\x03www"],
    repair: as_it_is,
    read: answer,
    memory: (4096, 1024 * 1024),
};

pub const FILES: Target = Target {
    name: "host_files",
    examples: || {
        vec![
            b"127.0.0.1 localhost\n::1 localhost ip6-localhost # ours\n192.0.2.1\tbroker.example BROKER\n".to_vec(),
            b"# by hand\nnameserver 192.0.2.53\nnameserver fe80::1%eth0\noptions edns0\nnameserver 2001:db8::53\n"
                .to_vec(),
        ]
    },
    words: &[b"nameserver ", b"broker.example", b"\n", b"#", b"::", b"%eth0", b"1.2.3.4", b"\0", b"\xe2\x80\xa8"],
    repair: as_it_is,
    read: files,
    memory: (64, 64 * 1024),
};

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = [&((4 + value.len()) as u16).to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn message(kind: u16, body: &[u8]) -> Vec<u8> {
    let length = (16 + body.len()) as u32;
    [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[2, 0], &7_u32.to_ne_bytes(), &[0; 4], body].concat()
}

fn datagrams() -> Vec<Vec<u8>> {
    let link = |name: &[u8]| {
        let head = [&[0, 0][..], &1_u16.to_ne_bytes(), &7_u32.to_ne_bytes(), &0x11043_u32.to_ne_bytes(), &[0; 4]];
        [head.concat(), attribute(60 | 0x8000, b"nested"), attribute(3, name)].concat()
    };
    let address = |family: u8, value: &[u8]| {
        let head = [&[family, 24, 0x80, 0][..], &7_u32.to_ne_bytes()].concat();
        [head, attribute(1, value), attribute(2, value), attribute(8, &[0; 4])].concat()
    };
    let all = [
        message(16, &link(b"eth0\0")),
        message(17, &link(b"wwan0\0")),
        message(20, &address(2, &[192, 0, 2, 1])),
        message(21, &address(10, &[0x20; 16])),
        message(3, &[0; 4]),
        message(2, &(-16_i32).to_ne_bytes()),
    ];
    let mut examples = all.to_vec();
    examples.push(all.concat());
    examples.push(wire::dump(true, 3));
    examples
}

/// Sets the first message's length to what is there.
fn right_length(input: &mut Vec<u8>) {
    let length = (input.len() as u32).to_ne_bytes();
    input.iter_mut().zip(length).for_each(|(to, from)| *to = from);
}

fn datagram(input: &[u8]) -> Shape {
    let all = wire::messages(input);
    assert!(all.len() <= input.len() / 16, "{} messages in {} bytes", all.len(), input.len());
    // What follows a datagram changes nothing of what it says, once it ends where a message ends.
    if input.len().is_multiple_of(4) {
        let mut longer = input.to_vec();
        longer.extend(message(16, &[1; 16]));
        let more = wire::messages(&longer);
        assert!(more.len() >= all.len() && more.iter().zip(&all).all(|(one, other)| one == other));
    }
    let kinds = |message: &Message| match message {
        Message::Link { name, .. } => {
            assert!((1..16).contains(&name.to_string().len()));
            1
        }
        Message::Address { address: (ip, _), usable, .. } => 2 + u8::from(ip.is_ipv6()) + 2 * u8::from(*usable),
        other => 10 + (shape_of(other) % 7) as u8,
    };
    mixed(all.iter().take(5).map(|(_, message)| kinds(message)).collect::<Vec<_>>())
}

const HOST: &str = "broker.example";

fn answers() -> Vec<Vec<u8>> {
    let name = |text: &str| DnsName::new(text).unwrap().into_owned();
    let of = |records: &[(&str, RData<'static>)], flags: PacketFlag| {
        let query = Query::new(HOST, TYPE::A).unwrap();
        let mut packet = Packet::parse(&query.bytes).unwrap().into_reply();
        packet.set_flags(PacketFlag::RESPONSE | flags);
        for (owner, data) in records {
            packet.answers.push(ResourceRecord::new(name(owner), CLASS::IN, 60, data.clone()));
        }
        packet.build_bytes_vec_compressed().unwrap()
    };
    let address = RData::A(A { address: 0xc000_0201 });
    let alias = |to: &str| RData::CNAME(CNAME(name(to)));
    vec![
        of(&[(HOST, address.clone())], PacketFlag::RECURSION_AVAILABLE),
        of(
            &[(HOST, alias("a.example")), ("a.example", alias("b.example")), ("b.example", address)],
            PacketFlag::empty(),
        ),
        of(&[(HOST, alias(HOST))], PacketFlag::empty()),
        of(&[(HOST, alias("elsewhere.example"))], PacketFlag::empty()),
        of(&[], PacketFlag::TRUNCATION),
        of(&[], PacketFlag::AUTHORITATIVE_ANSWER),
    ]
}

/// The number of the question differs from run to run: the message gets the one that was asked.
fn answer(input: &[u8]) -> Shape {
    let mut shapes = Vec::new();
    for kind in [TYPE::A, TYPE::AAAA] {
        let query = Query::new(HOST, kind).unwrap();
        let mut message = input.to_vec();
        assert!(
            message.len() < 2 || message[..2] == query.bytes[..2] || query.read(&message).is_none(),
            "an answer to another question"
        );
        message.iter_mut().zip(&query.bytes).take(2).for_each(|(to, from)| *to = *from);
        let said = query.read(&message);
        match &said {
            Some(Said::Addresses(addresses, ttl)) => {
                assert!(!addresses.is_empty() && addresses.len() <= message.len() / 4 && ttl.as_secs() <= 3600);
                assert!(addresses.iter().all(|ip| ip.is_ipv4() == (kind == TYPE::A)));
                shapes.push(mixed((1, addresses.len().min(4))));
            }
            Some(Said::Alias(name, _)) => {
                assert!(!name.eq_ignore_ascii_case(HOST), "asked again for ever");
                // The next question, or none; never more than the protocol allows.
                let next = Query::new(name, kind);
                assert!(next.as_ref().is_ok_and(|next| next.bytes.len() <= 12 + 256 + 4) || next.is_err());
                shapes.push(mixed((2, next.is_ok())));
            }
            other => shapes.push(shape_of(other)),
        }
    }
    mixed(shapes)
}

fn files(input: &[u8]) -> Shape {
    let text = String::from_utf8_lossy(input);
    let (hosts, servers) = (listed(&text, HOST), name_servers(&text));
    assert!(hosts.len() <= 16 && servers.len() <= 3);
    let kinds = |all: &[IpAddr]| all.iter().take(4).map(IpAddr::is_ipv4).collect::<Vec<_>>();
    mixed((kinds(&hosts), kinds(&servers)))
}
