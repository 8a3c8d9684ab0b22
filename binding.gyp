{
  "targets": [
    {
      "target_name": "tsbouncer",
      "sources": [
        "native/addon.cc",
        "native/address.cc",
        "native/auth_pam.cc",
        "native/bind_loop.cc",
        "native/bind_posix.cc",
        "native/bind_socket.cc",
        "native/bind_tls.cc",
        "native/loop_uv.cc",
        "native/loop_uv_io.cc",
        "native/loop_uv_resolve.cc",
        "native/tls_conn.cc",
        "native/tls_context.cc",
        "native/tls_peer.cc"
      ],
      "include_dirs": ["<!(node -p \"require('node-addon-api').include_dir\")"],
      "defines": ["NAPI_VERSION=8", "NODE_ADDON_API_DISABLE_CPP_EXCEPTIONS"],
      "cflags": ["-Wall", "-Wextra"],
      "cflags_cc": ["-std=gnu++17", "-fno-exceptions", "-fvisibility=hidden"],
      "cflags!": ["-Wno-unused-parameter"]
    }
  ]
}
