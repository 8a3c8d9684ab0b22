/* Whether the kernel's header at build time describes what the io_uring backend needs (5.19). If not, the addon is built
 * without that backend. */
#pragma once

#if defined(__linux__) && __has_include(<linux/io_uring.h>)
#include <linux/io_uring.h>
#ifdef IORING_ASYNC_CANCEL_ANY
#define TSB_HAVE_URING 1
#endif
#endif
