"""Which test holds which line of ingestd/emulator/AZURE.md: sections 0 to 6, 9 and 10.

One line here for each line there: section (§), what it says in few words, and the tests. ``README`` stands for a row of
the README's table of what differs from Azure. The test below keeps the names true.
"""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
PROJECT = HERE.parents[1]
README = (PROJECT / "README.md").read_text(encoding="utf-8")

LINES = """
§0.1 versions 1.0-prerelease, 1, 2, v1.0, v2.0 | every_supported_version_answers_and_says_which_there_are versions_may_be_written_with_their_minor_number prerelease_version_behaves_as_version_1
§0.1 no version 404, unknown version 400 UnsupportedApiVersion | paths_without_a_version_are_not_found unknown_version_is_a_bad_request_with_its_code
§0.1 case and trailing slash | paths_are_case_insensitive_and_may_end_in_a_slash literals_of_paths_have_no_case_and_one_slash_too_many_is_no_matter
§0.1 api-supported-versions | every_supported_version_answers_and_says_which_there_are
§0.1 partition variant | partitions_keep_their_studies_apart
§0.2 camelCase, no nulls, enums; action and state in PascalCase | json_of_the_service_is_camel_case_and_takes_enums_in_any_case_but_not_any_word entry_has_the_properties_in_their_order
§0.2 DICOM JSON's content type and keys | dicom_json_has_its_type_and_sorted_uppercase_keys
§0.3 400 bad JSON, argument, UID, query, start, audit headers, body | bad_json_is_worded_as_the_service_does invalid_uids_are_bad_requests what_cannot_be_searched_is_a_bad_request start_parameter_is_a_bad_request audit_headers_have_their_limits_on_stores_too body_without_its_boundary_is_a_bad_request client_that_goes_away_leaves_nothing_but_a_line
§0.3 401 and its challenge | no_token_is_unauthorized_and_told_where_to_get_one
§0.3 403 and its words | reader_may_read_and_owner_may_write
§0.3 404 | missing_resources_are_named frames_and_images_of_what_is_not_there unknown_operation_is_not_found tag_that_exists_is_a_conflict_and_can_be_deleted_once
§0.3 406 | accept_filter_of_everything_that_answers_dicom_json transcoding_that_cannot_be_done_is_worded large_files_are_neither_transcoded_nor_rendered
§0.3 409 | instance_that_exists_is_a_conflict tag_that_exists_is_a_conflict_and_can_be_deleted_once one_reindex_at_a_time_and_its_states
§0.3 413 and its words | file_over_the_limit_is_413_alone_and_in_parts file_over_the_limit_is_too_large_and_nothing_is_stored
§0.3 415 | other_content_types_are_unsupported part_with_other_type_refuses_everything
§0.3 424 | README:424, customer keys
§0.3 500 and its words, vanished file | file_that_vanished_under_its_row_is_a_server_error
§0.3 503 | more_tags_than_allowed_are_a_server_error refusals_with_any_retry_after
§0.3 no 429 by itself | nothing_misbehaves_by_itself README:429
§0.3 angle brackets in the query | angle_brackets_in_any_query_are_refused
§0.3 query parameters are named | bad_query_parameters_are_named
§0.3 audit headers | audit_headers_have_their_limits_on_stores_too too_many_or_too_long_audit_headers_are_refused
§0.4 the list, missing, 406 without body, strict parsing | accept_filter_of_everything_that_answers_dicom_json one_unparsable_accept_member_spoils_the_list
§0.4 415 of the framework first | refusals_come_in_the_services_order
§0.4 where Accept is not looked at | accept_is_not_looked_at_elsewhere deleting_takes_any_accept_and_body
§0.5 limits | limits_are_the_services large_files_are_neither_transcoded_nor_rendered pages_of_the_feed more_tags_than_allowed_are_a_server_error updates_that_make_no_sense_are_bad_requests
§0.5 deleted files | README:three days
§1.1 paths, PUT | put_into_a_study_takes_only_that_study oss_flavour_keeps_every_byte_and_has_no_put
§1.1 type and quotes optional, boundary not, start | type_and_quotes_are_optional missing_boundary_is_worded_as_the_service_does missing_boundary_parameters_or_type_are_unsupported start_parameter_is_a_bad_request
§1.1 single part exact | missing_boundary_parameters_or_type_are_unsupported
§1.1 no or other content type | other_content_types_are_unsupported missing_boundary_parameters_or_type_are_unsupported
§1.1 parts' types, foreign headers | first_part_without_type_takes_the_outer_one later_part_without_type_refuses_everything part_with_other_type_refuses_everything foreign_part_headers_are_ignored
§1.1 no metadata and bulk data | metadata_and_bulk_data_are_not_stored
§1.2 order of refusals | refusals_come_in_the_services_order
§1.2 all parts first, then one after the other | nothing_is_stored_of_a_body_that_turns_out_malformed items_come_in_the_order_of_the_parts file_over_the_limit_is_too_large_and_nothing_is_stored
§1.3 zero parts 204 | multipart_without_parts_has_no_content
§1.3 no body 400 | multipart_type_without_any_body_is_a_bad_request
§1.3 one empty part 409 | one_empty_part_is_a_conflict
§1.3 an empty and a valid part 202 | empty_part_beside_a_good_one_is_partial_success
§1.3 empty single part 409 | empty_single_part_is_a_conflict
§1.3 truncated last part dropped | truncated_last_part_is_dropped_without_a_word
§1.3 invalid path UID 400 | invalid_study_uid_in_the_path_is_a_bad_request
§1.4 no entries 204 | multipart_without_parts_has_no_content
§1.4 all stored 200 | success_item_has_what_it_must
§1.4 warnings: v1 200, v2 202 | implicit_vr_is_stored_with_its_warning v2_stores_an_invalid_indexed_attribute_and_warns
§1.4 some failed 202 | one_of_another_study_fails_alone
§1.4 none stored 409 | all_of_other_studies_fail
§1.5 top level | one_of_another_study_fails_alone instance_that_exists_is_a_conflict
§1.5 success item | success_item_has_what_it_must urls_in_answers_have_the_hosts_name_as_it_was_asked_for
§1.5 failure item, order of items | failure_item_of_a_duplicate_has_reason_and_uids_and_no_more not_dicom_gets_an_item_with_nothing_but_its_reason items_come_in_the_order_of_the_parts
§1.5 lowercase hex, 100 | tags_in_comments_are_lowercase_hex
§1.6 272 | per_instance_failures file_of_endless_nesting_is_refused_and_harmless
§1.6 43264 | not_dicom_gets_an_item_with_nothing_but_its_reason required_attribute_that_is_missing_is_named v1_refuses_an_invalid_indexed_attribute
§1.6 43265 or 43264 | all_of_other_studies_fail README:43265
§1.6 45070 | instance_that_exists_is_a_conflict
§1.6 45071 | stuck_creating_row_answers_45071_until_it_is_deleted commit_delay_shows_45071_to_a_second_store
§1.6 45063, 1, which wins | implicit_vr_is_stored_with_its_warning v2_implicit_vr_warning_wins_over_others
§1.6 several values: header in v1, comment in v2 | v1_tells_of_several_values_in_a_header v2_warns_of_several_values_where_one_is_allowed v2_tells_of_several_patient_ids_in_a_header_only
§1.7 required attributes | required_attribute_that_is_missing_is_named required_uids_have_exactly_one_value only_the_first_missing_attribute_is_told
§1.7 v1 | v1_refuses_an_invalid_indexed_attribute v1_refuses_an_empty_patient_id v1_does_not_look_at_attributes_that_are_not_indexed
§1.7 v2 | v2_stores_an_invalid_indexed_attribute_and_warns v2_warns_of_what_is_inside_sequences_and_keeps_the_sequence v2_empty_patient_id_warns_and_does_not_erase_an_older_one
§1.7 NULs | v2_trailing_null_is_no_warning_and_found_both_ways v2_null_inside_a_value_is_a_warning v2_null_in_patient_id v2_null_padded_study_uid_matches_the_path
§1.7 minimum validators and their words | minimum_validators v1_minimum_validators_word_their_refusals indexed_attribute_of_another_vr_is_refused_by_v1
§1.7 UID rule | uid_rule_is_the_services_own invalid_uid_in_the_file_is_a_conflict
§1.7 equal UIDs allowed | same_uid_for_study_series_and_instance_is_allowed
§1.7 trailing spaces collide | padded_study_uid_is_the_same_study uids_are_compared_without_trailing_spaces
§1.7 indexed attributes | tables_of_attributes_are_the_pages
§1.7 full validators, VM | full_validators multiplicity_is_not_checked_where_it_means_nothing v2_warns_of_every_broken_vr_rule v2_warns_of_several_values_where_one_is_allowed
§1.8 any transfer syntax | any_transfer_syntax_is_stored_as_it_is implicit_vr_is_stored_with_its_warning
§1.8 bytes, preamble | large_single_part_comes_back_as_it_was managed_flavour_zeroes_the_preamble_and_nothing_else
§1.8 two phases | commit_delay_shows_45071_to_a_second_store crash_can_leave_creating_rows_as_the_service_does
§1.8 changed tags or a deleted Creating row: 272 | tags_that_change_during_a_store_fail_it_with_272 creating_row_deleted_meanwhile_fails_its_store
§1.8 a Create and a Delete for one failed store | undone_store_fails_and_leaves_a_create_and_a_delete
§1.8 latest wins | latest_value_of_a_study_wins v2_empty_patient_id_warns_and_does_not_erase_an_older_one
§1.8 identity | same_sop_uid_in_another_study_is_another_instance
§1.8 same file twice | same_instance_twice_in_one_request_stores_the_first
§1.8 private tags of implicit files | private_tag_of_an_implicit_file_is_kept_but_not_in_the_metadata
§1.9 PUT | put_replaces_what_is_there put_of_one_identity_twice_keeps_the_later put_into_a_study_takes_only_that_study TestModel
§1.9 expiry | expiry_headers_remove_the_study_when_its_time_is_over store_without_expiry_headers_cancels_the_expiry expiry_that_makes_no_sense_is_a_bad_request open_source_flavour_takes_no_notice_of_expiry_headers
§1.9 external metadata, bulk import, events, 424 | README:msdicom-meta-
§1.10 no throttling contract | nothing_misbehaves_by_itself README:429
§2 the nine resources | instance_as_a_single_part several_instances_only_with_any_transfer_syntax metadata_is_right_on_three_levels one_frame_as_a_single_part rendered_as_jpeg_or_png
§2.1 media types | what_is_not_offered_is_not_acceptable instance_as_multipart single_part_is_not_offered_for_a_series frame_as_jpeg_2000
§2.1 transfer-syntax omitted, */* | native_files_are_transcoded answers_name_no_type_and_each_part_its_transfer_syntax original_frame_of_a_syntax_that_cannot_be_decoded
§2.1 no Accept, unsupported, q, original preferred | what_is_not_offered_is_not_acceptable original_is_preferred_at_equal_quality refusals_of_the_accept_header_are_worded
§2.1 several instances only as stored | several_instances_only_with_any_transfer_syntax mixed_transfer_syntaxes_each_say_their_own
§2.1 transcoding, its limits and sources | lossless_jpeg_of_any_predictor_is_decoded compressed_syntax_that_the_service_does_not_decode_is_not_acceptable large_files_are_neither_transcoded_nor_rendered file_over_the_transcoding_limit_is_not_acceptable compressed_files_are_decoded native_files_are_transcoded transcoding_that_cannot_be_done_is_worded README:Transcoding
§2.1 single part of several frames | single_part_of_several_frames_is_a_bad_request
§2.1 frame numbers | frames_that_make_no_sense_are_bad_requests frame_beyond_the_last_is_not_found frame_of_no_pixel_data_is_not_found
§2.1 content types of answers and parts | answers_name_no_type_and_each_part_its_transfer_syntax several_frames_as_multipart
§2.1 404 words, invalid UIDs | missing_resources_are_named frames_and_images_of_what_is_not_there invalid_uids_are_bad_requests
§2.1 msdicom-request-original | update_changes_every_instance_and_keeps_the_original metadata_of_the_original_version_on_request
§2.2 without bulk, group lengths, file meta | metadata_leaves_out_bulk_group_lengths_and_file_meta
§2.2 ETag | matching_etag_is_not_modified_and_others_are_sent_again etag_changes_when_an_instance_comes_and_when_it_goes TestModel
§2.2 JSON values | metadata_writes_values_as_dicom_json_has_them v1_metadata_keeps_numbers_that_are_none_as_text
§2.2 v2 leaves out what failed | v2_stores_an_invalid_indexed_attribute_and_warns
§2.3 Accept | rendered_as_jpeg_or_png rendered_as_anything_else_is_not_acceptable refusals_of_the_accept_header_are_worded
§2.3 quality, frames, size, undecodable | quality_out_of_range_is_a_bad_request quality_is_for_jpeg_and_one_to_a_hundred rendered_frame_that_is_not_there large_files_are_neither_transcoded_nor_rendered transcoding_that_cannot_be_done_is_worded
§3 six paths, 200, 204, 400, 406 | all_six_resources_match nothing_that_matches_has_no_content wrong_accept_is_not_acceptable
§3.1 limit, offset, fuzzymatching, includefield, filters once | what_cannot_be_searched_is_a_bad_request include_all_and_single_fields names_of_parameters_have_no_case_but_keywords_do
§3.1 filters by level | study_is_found_by_every_study_filter series_is_found_by_every_series_filter filters_are_taken_only_at_their_level
§3.1 words of refusals, StudyInstanceUID inside a study | searches_that_make_no_sense_are_refused_in_the_services_words study_uid_is_no_filter_inside_a_study
§3.2 exact, no wildcards, case and accents, padding | nothing_that_matches_has_no_content strings_compare_without_case_but_with_accents_and_names_without_either padding_of_values_does_not_count
§3.2 dates, times, ranges | study_is_found_by_every_study_filter every_kind_of_value_can_be_searched searches_that_make_no_sense_are_refused_in_the_services_words numbers_times_and_texts_of_tags_are_checked_before_searching
§3.2 numbers | every_kind_of_value_can_be_searched numbers_times_and_texts_of_tags_are_checked_before_searching
§3.2 fuzzy | fuzzy_matching_takes_prefixes_of_the_parts_in_order fuzzy_matching_needs_the_order_and_the_beginnings fuzzy_matching_of_the_referring_physician README:Fuzzy
§3.2 ModalitiesInStudy | study_is_found_by_every_study_filter
§3.2 newest first | newest_comes_first_and_pages_do_not_overlap newest_comes_first_on_every_level
§3.2 extended tags, erroneous-dicom-attributes | values_that_cannot_be_indexed_are_listed_and_switch_the_tag_off one_reindex_at_a_time_and_its_states
§3.2 where values come from | attributes_outside_the_index_come_from_the_newest_instance latest_value_of_a_study_wins v1_default_attributes_come_from_the_metadata
§3.3 default, all, composition | every_resource_returns_exactly_its_attributes tables_of_attributes_are_the_pages filters_are_returned
§3.3 computed attributes, counts with Creating rows | computed_attributes counts_include_rows_that_are_still_creating
§4 204, 404, 400, all levels | deleted_is_gone_on_all_levels_and_not_found_again siblings_survive_a_deletion deleting_invalid_uids_is_a_bad_request
§4 any Accept and body | deleting_takes_any_accept_and_body
§4 Creating rows without entry, one entry for each other | stuck_creating_row_answers_45071_until_it_is_deleted each_deleted_instance_has_its_entry_and_empty_series_go
§4 original and updated go | second_update_keeps_the_first_original_and_deletion_takes_both
§5 unpartitioned, no Accept, content type | feed_covers_all_partitions_and_is_never_under_one latest_refuses_a_bad_flag_and_needs_no_accept
§5.1 offset, limit, order | v1_offset_is_a_sequence_and_limit_a_width pages_of_the_feed v1_limit_over_a_hundred_is_a_bad_request
§5.1 startTime, endTime | v2_window_is_inclusive_at_its_start_and_exclusive_at_its_end version_1_has_no_time_window plus_of_a_zone_has_to_be_encoded
§5.1 400 and words | bad_feed_parameters_are_bad_requests v2_bad_windows_are_bad_requests window_errors_are_worded_as_the_service_does
§5.1 latest, empty server | latest_takes_metadata_or_not_and_nothing_is_filtered_by_accept empty_feed_and_no_latest
§5.2 order of properties, filePath | entry_has_the_properties_in_their_order README:filePath
§5.2 action and state, the histories | states_follow_deletion_and_storing_again update_changes_every_instance_and_keeps_the_original TestModel
§5.2 Replaced has the current metadata | states_follow_deletion_and_storing_again update_changes_every_instance_and_keeps_the_original
§5.3 visible together with its entry | late_feed_and_index_lag_end_by_themselves creating_row_deleted_meanwhile_fails_its_store kill_leaves_an_index_that_matches_its_files
§5.3 gaps, late entries, order | v1_offset_is_a_sequence_and_limit_a_width late_feed_and_index_lag_end_by_themselves README:Change feed
§6.1 resources and their answers | new_tag_is_searchable_for_what_was_there_and_what_comes tag_that_exists_is_a_conflict_and_can_be_deleted_once patch_takes_the_query_status_and_nothing_else
§6.1 pages | pages_of_tags_have_their_limits tags_and_their_errors_come_in_pages
§6.2 body, 400 texts | tags_that_make_no_sense_are_refused_in_the_services_words wrong_field_of_a_tag_is_named_with_its_place_in_the_body bodies_that_make_no_sense_are_bad_requests private_tag_needs_its_creator_and_vr
§6.2 503, 409 | more_tags_than_allowed_are_a_server_error tag_that_exists_is_a_conflict_and_can_be_deleted_once one_reindex_at_a_time_and_its_states
§6.2 VRs | sixteen_vrs_can_be_indexed every_kind_of_value_can_be_searched
§6.2 PATCH | patch_takes_the_query_status_and_nothing_else
§6.3 entry, error item, disabled by errors | values_that_cannot_be_indexed_are_listed_and_switch_the_tag_off tags_and_their_errors_come_in_pages
§6.4 operation, v1's completed, 202 and 200, 404 | one_reindex_at_a_time_and_its_states unknown_operation_is_not_found
§6.4 operations off | operations_can_be_switched_off operations_that_are_switched_off_refuse_updates_too
§9 Store: EmptyContent, InvalidStudyInstanceUID, IncorrectAcceptHeader | empty_single_part_is_a_conflict invalid_study_uid_in_the_path_is_a_bad_request wrong_or_missing_accept_is_not_acceptable
§9 Store: NonMultipart, NoContent, EmptyContent, InvalidSection, TypeParameter | other_content_types_are_unsupported multipart_without_parts_has_no_content one_empty_part_is_a_conflict empty_part_beside_a_good_one_is_partial_success first_part_without_type_takes_the_outer_one
§9 Store: AllDifferent, OneDifferent | all_of_other_studies_fail one_of_another_study_fails_alone
§9 Store: DuplicateIdentifiers, ExistingDataset | same_instance_twice_in_one_request_stores_the_first instance_that_exists_is_a_conflict
§9 Store: InvalidUid | invalid_uid_in_the_file_is_a_conflict
§9 Store: SinglePart, large files | single_part_answers_dicom_json single_part_with_its_study_in_the_path large_single_part_comes_back_as_it_was several_large_parts_come_back_as_they_were
§9 Store: TagWithMultipleValues, PaddedStudyInstanceUID, ImplicitVRPrivateTag | indexed_attribute_with_several_values_is_stored padded_study_uid_is_the_same_study private_tag_of_an_implicit_file_is_kept_but_not_in_the_metadata
§9 StoreLatest: InvalidIndexableAttribute, Modality with NUL | v2_stores_an_invalid_indexed_attribute_and_warns v2_null_inside_a_value_is_a_warning v2_trailing_null_is_no_warning_and_found_both_ways
§9 StoreLatest: NUL in study UID and Patient ID, null Patient ID | v2_null_padded_study_uid_matches_the_path v2_null_in_patient_id v2_empty_patient_id_warns_and_does_not_erase_an_older_one
§9 StoreLatest: InvalidVrValue, ~1.7 GB | very_large_file_is_stored v2_warns_of_every_broken_vr_rule memory_stays_bounded_whatever_is_sent
§9 StoreV1: InvalidVrValue, PatientID with NUL | v1_refuses_an_invalid_indexed_attribute v1_refuses_a_patient_id_with_a_trailing_null
§9 Delete | deleted_is_gone_on_all_levels_and_not_found_again siblings_survive_a_deletion deleting_invalid_uids_is_a_bad_request
§9 ChangeFeed | pages_of_the_feed v2_window_is_inclusive_at_its_start_and_exclusive_at_its_end states_follow_deletion_and_storing_again v2_bad_windows_are_bad_requests bad_feed_parameters_are_bad_requests v1_limit_over_a_hundred_is_a_bad_request latest_refuses_a_bad_flag_and_needs_no_accept
§9 Retrieve: instance | instance_as_a_single_part instance_as_multipart native_files_are_transcoded stored_syntax_that_cannot_be_decoded_is_given_only_as_it_is instance_without_pixel_data_can_be_retrieved padded_study_uid_is_retrievable missing_resources_are_named
§9 Retrieve: series, study | several_instances_only_with_any_transfer_syntax mixed_transfer_syntaxes_each_say_their_own single_part_is_not_offered_for_a_series
§9 Retrieve: frames | one_frame_as_a_single_part several_frames_as_multipart original_frame_of_a_syntax_that_cannot_be_decoded frame_beyond_the_last_is_not_found frames_that_make_no_sense_are_bad_requests
§9 Retrieve: rendered | rendered_as_jpeg_or_png rendered_frame_that_is_not_there quality_changes_the_size
§9 Metadata, ETag | metadata_with_a_wrong_accept_is_not_acceptable metadata_of_what_is_not_there_is_not_found metadata_is_right_on_three_levels matching_etag_is_not_modified_and_others_are_sent_again etag_changes_when_an_instance_comes_and_when_it_goes
§9 Query | what_cannot_be_searched_is_a_bad_request nothing_that_matches_has_no_content all_six_resources_match computed_attributes strings_compare_without_case_but_with_accents_and_names_without_either fuzzy_matching_of_the_referring_physician query_of_the_ohif_viewer_works
§9 ExtendedQueryTag | new_tag_is_searchable_for_what_was_there_and_what_comes values_that_cannot_be_indexed_are_listed_and_switch_the_tag_off tags_that_make_no_sense_are_refused_in_the_services_words wrong_field_of_a_tag_is_named_with_its_place_in_the_body invalid_value_of_an_indexed_tag_is_refused_by_v1_and_warned_of_by_v2
§9 UpdateInstance | version_1_has_no_update update_changes_every_instance_and_keeps_the_original update_of_an_unknown_study_succeeds second_update_keeps_the_first_original_and_deletion_takes_both update_reaches_extended_tags
§9 WorkItem | workitem_goes_its_whole_way scheduled_workitem_is_canceled_once unknown_workitem_is_not_found workitem_must_be_whole workitems_are_found workitem_searches_that_make_no_sense
§9 DataPartitionEnabled | partitions_keep_their_studies_apart partitions_are_refused_while_they_are_off
§9 Export | export_is_not_found_while_it_is_off README:/export
§9 HealthCheck, Authentication, Authorization, Audit | health_is_unversioned no_token_is_unauthorized_and_told_where_to_get_one reader_may_read_and_owner_may_write audit_headers_have_their_limits_on_stores_too
§10 faults: commit delay, Creating rows, 272, latency, errors, drops | commit_delay_shows_45071_to_a_second_store stuck_creating_row_answers_45071_until_it_is_deleted per_instance_failures latency_and_bandwidth_take_their_time refusals_with_any_retry_after broken_connections_and_what_they_leave nothing_misbehaves_by_itself
§10 flavours | put_replaces_what_is_there managed_flavour_zeroes_the_preamble_and_nothing_else all_of_other_studies_fail expiry_headers_remove_the_study_when_its_time_is_over
""".strip().splitlines()  # noqa: E501 - a table; broken lines would not be one


def is_held(line: str, known: set[str], table: str) -> bool:
    """Whether every named test exists, and every named deviation stands in the README's table."""
    tests, _, deviation = line.partition(" | ")[2].partition("README:")
    return bool(tests.strip() or deviation) and set(tests.split()) <= known and deviation in table


def test_every_line_of_the_facts_has_its_tests():
    text = "".join(path.read_text(encoding="utf-8") for path in HERE.glob("test_*.py"))
    known = set(re.findall(r"^def test_(\w+)", text, re.MULTILINE)) | {"TestModel"}
    table = README.partition("### What differs from Azure")[2].partition("\n## ")[0]

    assert [line for line in LINES if not is_held(line, known, table)] == []


def test_every_section_has_its_lines():
    page = (PROJECT / "ingestd" / "emulator" / "AZURE.md").read_text(encoding="utf-8")
    sections = set(re.findall(r"^#+ ([0-6](?:\.\d+)?|9|10) ", page, re.MULTILINE))
    whole = {"0", "1", "6"}  # nothing but a title; their parts have the lines

    assert {line.split()[0].removeprefix("§") for line in LINES} == sections - whole
