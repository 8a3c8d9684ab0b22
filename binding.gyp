{
  "targets": [
    {
      "target_name": "tsbouncer",
      "sources": [
        "native/addon.cc",
        "native/address.cc",
        "native/bind/hash.cc",
        "native/bind/loop.cc",
        "native/bind/pam.cc",
        "native/bind/posix.cc",
        "native/bind/socket.cc",
        "native/bind/tls.cc",
        "native/loop/backend_epoll.cc",
        "native/loop/backend_uring.cc",
        "native/loop/handles.cc",
        "native/loop/handover.cc",
        "native/loop/handshakes.cc",
        "native/loop/hands.cc",
        "native/loop/kept.cc",
        "native/loop/lanes.cc",
        "native/loop/outbox.cc",
        "native/loop/ready.cc",
        "native/loop/stream.cc",
        "native/loop/uring.cc",
        "native/loop/uring_cancel.cc",
        "native/loop/uring_submit.cc",
        "native/loop/uvside.cc",
        "native/pam/pam.cc",
        "native/tls/conn.cc",
        "native/tls/context.cc",
        "native/tls/continued.cc",
        "native/tls/follow.cc",
        "native/tls/input.cc",
        "native/tls/keys.cc",
        "native/tls/message.cc",
        "native/tls/peer.cc",
        "native/tls/record.cc",
        "native/tls/transfer.cc"
      ],
      "include_dirs": ["native", "<!(node -p \"require('node-addon-api').include_dir\")"],
      "defines": ["NAPI_VERSION=8", "NODE_ADDON_API_DISABLE_CPP_EXCEPTIONS"],
      "cflags": ["-Wall", "-Wextra"],
      "cflags_cc": ["-std=gnu++17", "-fno-exceptions", "-fvisibility=hidden"],
      "cflags!": ["-Wno-unused-parameter"],
      "conditions": [["OS=='linux'", {"ldflags": ["-Wl,-z,relro,-z,now"]}]]
    }
  ]
}
