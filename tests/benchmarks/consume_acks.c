/* Consumes COUNT messages with a prefetch of PREFETCH and acks every EVERY of them with multiple, on rabbitmq-c: the
   yardstick. The clock runs from the first delivery to the last.

   consume_acks HOST PORT USER PASSWORD VHOST QUEUE COUNT PREFETCH EVERY */
#include <amqp.h>
#include <amqp_tcp_socket.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static void check(int failed, const char *what) {
    if (failed) {
        fprintf(stderr, "%s failed\n", what);
        exit(1);
    }
}

static double now(clockid_t clock) {
    struct timespec at;
    clock_gettime(clock, &at);
    return at.tv_sec + at.tv_nsec / 1e9;
}

int main(int argc, char **argv) {
    check(argc != 10, "reading the nine arguments");
    unsigned long count = strtoul(argv[7], NULL, 10), every = strtoul(argv[9], NULL, 10);

    amqp_connection_state_t connection = amqp_new_connection();
    amqp_socket_t *socket = amqp_tcp_socket_new(connection);
    check(!socket || amqp_socket_open(socket, argv[1], atoi(argv[2])), "connecting");
    check(amqp_login(connection, argv[5], 0, 131072, 0, AMQP_SASL_METHOD_PLAIN, argv[3], argv[4]).reply_type !=
              AMQP_RESPONSE_NORMAL, "logging in");
    amqp_channel_open(connection, 1);
    check(amqp_get_rpc_reply(connection).reply_type != AMQP_RESPONSE_NORMAL, "opening a channel");
    amqp_basic_qos(connection, 1, 0, atoi(argv[8]), 0);
    amqp_basic_consume(connection, 1, amqp_cstring_bytes(argv[6]), amqp_empty_bytes, 0, 0, 0, amqp_empty_table);
    check(amqp_get_rpc_reply(connection).reply_type != AMQP_RESPONSE_NORMAL, "consuming");

    double began = 0, cpu = 0;
    for (unsigned long got = 1; got <= count; got++) {
        amqp_envelope_t envelope;
        amqp_maybe_release_buffers(connection);
        check(amqp_consume_message(connection, &envelope, NULL, 0).reply_type != AMQP_RESPONSE_NORMAL, "a delivery");
        if (got == 1) {
            began = now(CLOCK_MONOTONIC);
            cpu = now(CLOCK_PROCESS_CPUTIME_ID);
        }
        if (got % every == 0 || got == count)
            check(amqp_basic_ack(connection, 1, envelope.delivery_tag, 1), "acking");
        amqp_destroy_envelope(&envelope);
    }
    printf("{\"messages per second\": %.0f, \"CPU µs per message\": %.2f}\n",
           (count - 1) / (now(CLOCK_MONOTONIC) - began), 1e6 * (now(CLOCK_PROCESS_CPUTIME_ID) - cpu) / count);
    amqp_connection_close(connection, AMQP_REPLY_SUCCESS);
    amqp_destroy_connection(connection);
    return 0;
}
