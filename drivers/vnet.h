/* The virtio-net header in front of a frame that is sent: what the metadata says of a super-frame; nothing (all zero)
 * of an ordinary one, whose checksums are complete. struct virtio_net_hdr, host byte order (VIRTIO 1.2, 5.1.6). */
#ifndef PR_VNET_H
#define PR_VNET_H

#include "layout.h"

#include <linux/virtio_net.h>

static inline struct virtio_net_hdr pr_vnet_of(const struct pr_meta *m)
{
    struct virtio_net_hdr v = {0};
    if (m->flags & PR_META_GSO) {
        v = (struct virtio_net_hdr){.gso_type = m->gso_type, .gso_size = m->gso_size, .hdr_len = m->hdr_len};
        if (m->vnet_flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) {
            v.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
            v.csum_start = m->csum_start;
            v.csum_offset = m->csum_offset;
        }
    }
    return v;
}

#endif
