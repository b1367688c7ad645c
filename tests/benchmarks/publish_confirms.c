/* Publishes COUNT messages of SIZE bytes with at most WINDOW confirms outstanding, on rabbitmq-c: the yardstick.

   publish_confirms HOST PORT USER PASSWORD VHOST EXCHANGE ROUTING_KEY COUNT SIZE WINDOW */
#include <amqp.h>
#include <amqp_tcp_socket.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static void check(int failed, const char *what) {
    if (failed) {
        fprintf(stderr, "%s failed\n", what);
        exit(1);
    }
}

static double now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec + at.tv_nsec / 1e9;
}

/* Reads confirms until at most *most* of *sent* messages are without one; *block* waits for them. */
static unsigned long confirmed, contiguous;
static char *is_confirmed;

static void count_confirm(unsigned long tag) {
    confirmed += !is_confirmed[tag];
    is_confirmed[tag] = 1;
}

static void confirms(amqp_connection_state_t connection, unsigned long sent, unsigned long most) {
    struct timeval none = {0, 0};
    for (;;) {
        amqp_frame_t frame;
        int said = amqp_simple_wait_frame_noblock(connection, &frame, sent - confirmed > most ? NULL : &none);
        if (said == AMQP_STATUS_TIMEOUT) return;
        check(said != AMQP_STATUS_OK, "reading a confirm");
        check(frame.frame_type != AMQP_FRAME_METHOD || frame.payload.method.id != AMQP_BASIC_ACK_METHOD, "a confirm");
        amqp_basic_ack_t *ack = frame.payload.method.decoded;
        if (ack->multiple)
            while (contiguous < ack->delivery_tag) count_confirm(++contiguous);
        else
            count_confirm(ack->delivery_tag);
        amqp_maybe_release_buffers(connection);
        if (confirmed == sent) return;
    }
}

int main(int argc, char **argv) {
    check(argc != 11, "reading the ten arguments");
    unsigned long count = strtoul(argv[8], NULL, 10), window = strtoul(argv[10], NULL, 10);
    amqp_bytes_t body = {strtoul(argv[9], NULL, 10), NULL};
    body.bytes = malloc(body.len);
    memset(body.bytes, 'x', body.len);
    is_confirmed = calloc(count + 1, 1);

    amqp_connection_state_t connection = amqp_new_connection();
    amqp_socket_t *socket = amqp_tcp_socket_new(connection);
    check(!socket || amqp_socket_open(socket, argv[1], atoi(argv[2])), "connecting");
    check(amqp_login(connection, argv[5], 0, 131072, 0, AMQP_SASL_METHOD_PLAIN, argv[3], argv[4]).reply_type !=
              AMQP_RESPONSE_NORMAL, "logging in");
    amqp_channel_open(connection, 1);
    check(amqp_get_rpc_reply(connection).reply_type != AMQP_RESPONSE_NORMAL, "opening a channel");
    amqp_confirm_select(connection, 1);
    check(amqp_get_rpc_reply(connection).reply_type != AMQP_RESPONSE_NORMAL, "asking for confirms");

    amqp_basic_properties_t properties = {
        ._flags = AMQP_BASIC_CONTENT_TYPE_FLAG | AMQP_BASIC_DELIVERY_MODE_FLAG | AMQP_BASIC_MESSAGE_ID_FLAG |
                  AMQP_BASIC_TIMESTAMP_FLAG | AMQP_BASIC_TYPE_FLAG | AMQP_BASIC_APP_ID_FLAG,
        .content_type = amqp_cstring_bytes("application/json"),
        .delivery_mode = 2,
        .timestamp = (uint64_t)time(NULL),
        .type = amqp_cstring_bytes(argv[7]),
        .app_id = amqp_cstring_bytes("yardstick"),
    };
    double began = now();
    for (unsigned long sent = 1; sent <= count; sent++) {
        char id[40];
        snprintf(id, sizeof id, "%036lu", sent);
        properties.message_id = amqp_cstring_bytes(id);
        check(amqp_basic_publish(connection, 1, amqp_cstring_bytes(argv[6]), amqp_cstring_bytes(argv[7]), 1, 0,
                                 &properties, body), "publishing");
        if (sent % 16 == 0 || sent - confirmed >= window) confirms(connection, sent, window - 1);
    }
    confirms(connection, count, 0);
    double took = now() - began;
    printf("{\"messages per second\": %.0f, \"CPU µs per message\": %.1f}\n", count / took,
           1e6 * clock() / CLOCKS_PER_SEC / count);
    amqp_connection_close(connection, AMQP_REPLY_SUCCESS);
    amqp_destroy_connection(connection);
    return 0;
}
