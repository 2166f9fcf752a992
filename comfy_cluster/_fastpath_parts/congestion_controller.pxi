# CongestionController: the class that Python sees; what it does is in congestion.pxi.

cdef class CongestionController:
    cdef Congestion state

    def __cinit__(self, uint32_t packet_size, uint32_t phase=0):
        congestion_init(&self.state, packet_size, phase)

    @property
    def window(self):
        return congestion_window(&self.state)

    @property
    def underway(self):
        return congestion_underway(&self.state)

    @property
    def bandwidth(self):
        return self.state.bandwidth

    @property
    def min_rtt(self):
        return self.state.min_rtt

    @property
    def mode(self):
        return self.state.mode

    @property
    def is_startup(self):
        return self.state.mode == MODE_STARTUP

    @property
    def is_competing(self):
        return self.state.loss_window > 0.0

    def pacing_rate(self, double smoothed_rtt):
        return congestion_pacing_rate(&self.state, smoothed_rtt)

    def set_packet_size(self, uint32_t packet_size):
        congestion_set_packet_size(&self.state, packet_size)

    def on_restart(self, double now):
        congestion_on_restart(&self.state, now)

    def on_app_limited(self):
        self.state.is_app_limited = True

    def on_sack(
        self, int64_t acked, double newest_sent_at, double rtt, int64_t bytes_in_flight, double now
    ):
        congestion_on_sack(&self.state, acked, newest_sent_at, rtt, bytes_in_flight, now)

    def on_packets_lost(self, int64_t lost, double newest_sent_at, double rtt, double now):
        congestion_on_lost(&self.state, lost, newest_sent_at, rtt, now)

    def on_persistent_loss(self):
        congestion_on_persistent_loss(&self.state)
