// Every operator's schema, in one place. Outputs are allocated by the caller and written in place, so that no operator
// returns a tensor and the stable ABI suffices.

#include "common.h"

STABLE_TORCH_LIBRARY(dllm_kernels, m) {
  m.def(
      "gumbel_argmax(Tensor logits, Tensor? temperature, Tensor? seeds, Tensor? positions, Tensor? step, "
      "Tensor? suppress, Tensor? begin_suppress, bool tempered, float? softcap, Tensor? floor, Tensor? rows, "
      "Tensor? count, Tensor(a!) token, Tensor(b!) log_prob, Tensor(c!) margin, Tensor(d!) neg_entropy, "
      "Tensor(e!) lse, Tensor(f!) argmax) -> ()");
  m.def("linear(Tensor hidden, Tensor weight, Tensor? bias, Tensor(a!) out) -> ()");
  m.def("int8_linear(Tensor hidden, Tensor weight, Tensor scale, Tensor? bias, Tensor(a!) out) -> ()");
  m.def(
      "linear_gumbel_argmax(Tensor hidden, Tensor weight, Tensor? bias, Tensor? weight_scale, Tensor? temperature, "
      "Tensor? seeds, Tensor? positions, Tensor? step, Tensor? suppress, Tensor? begin_suppress, bool tempered, "
      "float? softcap, Tensor? count, Tensor(a!) token, Tensor(b!) log_prob, Tensor(c!) margin, "
      "Tensor(d!) neg_entropy, Tensor(e!) lse, Tensor(f!) argmax) -> ()");
  m.def(
      "linear_expected_embedding(Tensor hidden, Tensor weight, Tensor? bias, Tensor? temperature, Tensor? seeds, "
      "Tensor? positions, Tensor? step, Tensor? suppress, bool tempered, float? softcap, Tensor? count, "
      "Tensor(a!) token, Tensor(b!) log_prob, Tensor(c!) margin, Tensor(d!) neg_entropy, Tensor(e!) lse, "
      "Tensor(f!) argmax, Tensor(g!) embedding) -> ()");
  m.def(
      "truncation_floor(Tensor logits, Tensor? temperature, int? top_k, float? top_p, Tensor? suppress, Tensor? rows, "
      "Tensor? count, Tensor(a!) floor) -> ()");
  m.def(
      "transfer_tokens(Tensor(a!) canvas, Tensor proposals, Tensor confidence, int mask_id, Tensor k, "
      "float? threshold, float? factor, int? budget, Tensor start, Tensor length, Tensor(b!) committed) -> ()");
  m.def(
      "list_candidates(Tensor tokens, Tensor block, Tensor step, Tensor blocks, Tensor begin, Tensor stop, "
      "Tensor seeds, int mask_id, Tensor hidden_offset, int hidden_rows, bool right_shift, bool block_only, "
      "Tensor? editable, Tensor? temperature, Tensor(a!) start, Tensor(b!) overflow, Tensor(c!) lists, "
      "Tensor(d!) count, Tensor(e!) slot, Tensor(f!)? own) -> ()");
  m.def(
      "place_proposals(Tensor slot, Tensor token, Tensor rank, Tensor? uniform, Tensor block, Tensor step, "
      "Tensor amount, Tensor row_steps, Tensor(a!) proposals, Tensor(b!) confidence, Tensor(c!) failed, "
      "Tensor(d!) k) -> ()");
  m.def(
      "advance_rows(Tensor(a!) tokens, Tensor(b!) block, Tensor(c!) step, Tensor blocks, Tensor begin, Tensor stop, "
      "Tensor steps, Tensor proposals, Tensor confidence, Tensor committed, int mask_id, Tensor first, "
      "Tensor(d!) row_steps, Tensor(e!) unmasked_steps, bool adapts, bool block_only, float? edit_threshold, "
      "int edit_steps, int? eos_id, int eot_id, bool stops_between_blocks) -> ()");
  m.def(
      "masked_cross_entropy(Tensor logits, Tensor targets, Tensor row_weight, Tensor row_scale, "
      "float label_smoothing, float z_loss, float? softcap, Tensor(a!) nll, Tensor(b!)? gradient) -> ()");
  m.def(
      "align_tokens(Tensor x0, Tensor x0_length, Tensor x1, Tensor x1_length, Tensor(a!) z0, Tensor(b!) z1, "
      "Tensor(c!) length) -> ()");
  m.def(
      "attention(Tensor query, Tensor key, Tensor value, Tensor? mask, float scale, Tensor(a!) out) -> ()");
  m.def(
      "packed_attention(Tensor query, Tensor key, Tensor value, Tensor ends, int? window, float scale, "
      "Tensor(a!) out) -> ()");
  m.def(
      "swiglu_experts(Tensor hidden, Tensor gate_up, Tensor down, Tensor index, Tensor weights, Tensor? gate_up_scale, "
      "Tensor? down_scale, Tensor(a!) out) -> ()");
  m.def("position_noise(Tensor seeds, Tensor positions, Tensor step, bool gumbel, Tensor(a!) noise) -> ()");
  m.def("dropout(Tensor x, Tensor seed, int threshold, Tensor(a!) out) -> ()");
  m.def("scale_rows(Tensor(a!) x, Tensor scale) -> ()");
}
